"""Writes the full-size SD 1.5 architecture with random f16 weights and pictures that diffusers draws with it.

usage: python tools/full_size.py FOLDER [--sizes 128 256] [--steps 2]

FOLDER/diffusers/ is the pipeline (2.1 GB), FOLDER/single.safetensors the same weights under the original key names,
FOLDER/WxH.png and FOLDER/WxH.safetensors what diffusers draws in f32 (prompt, seed and settings in FOLDER/cases.json).
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "goldens"))
import pipelines  # noqa: E402
import single_file  # noqa: E402
from bpe import CLIP_MERGES  # noqa: E402
from PIL import Image  # noqa: E402

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SPEC = dict(
    kind="sd",
    seed=15,
    dtype="f16",
    unet=dict(
        sample_size=64,
        cross_attention_dim=768,
        attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ),
    vae=dict(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    ),
    text=dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, projection_dim=768),
    scheduler=("PNDMScheduler", BETAS | dict(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)),
    tokenizer=dict(merge_count=CLIP_MERGES),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    model, single = args.folder / "diffusers", args.folder / "single.safetensors"
    if not (model / "model_index.json").exists():
        pipelines.build(SPEC, model)
    if not single.exists():
        single_file.write_single_file(model, single, "sd1")
    pipe = pipelines.load(model)
    records = []
    for size in args.sizes:
        case = dict(prompt="a red apple on a wooden table", negative_prompt="blurry", steps=args.steps, guidance=7.5, seed=42)
        case |= dict(height=size, width=size)
        out = pipelines.run(pipe, case)
        print(size, "spread and clipped share:", pipelines.check_sane(out, str(size)), flush=True)
        name = f"{size}x{size}"
        Image.fromarray(out["image"].numpy()).save(args.folder / f"{name}.png")
        pipelines.save_file({k: v for k, v in out.items()}, args.folder / f"{name}.safetensors")
        records.append(case | dict(picture=f"{name}.png"))
        (args.folder / "cases.json").write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
