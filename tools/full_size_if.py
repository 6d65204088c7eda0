"""Writes DeepFloyd IF-I-M at full size, T5 v1.1 XXL included, with random f16 weights, and what the reference makes of them.

usage: python tools/full_size_if.py FOLDER [--steps 2]
then:  scumble generate "a red apple on the table" -m FOLDER/model -s 7 --steps 2 -W 64 -H 64 --dump FOLDER/dump.safetensors -o FOLDER/out.png
       python tools/full_size_if.py FOLDER --compare

FOLDER/model is an `IFPipeline` directory of 10.3 GB. The reference runs T5 a layer at a time in f32, so that 4 GB of memory are enough,
then diffusers' pipeline. Three feed-forward layers are scaled so that T5's stream passes 65504, the largest half, as the released
weights make it do.
"""
import argparse
import shutil
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent / "goldens"))
import imagen  # noqa: E402

PROMPT = "a red apple on the table"
LOUD = (3, 9, 17)  # Layers whose feed-forward output exceeds halves.
T5 = transformers.T5Config(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, relative_attention_num_buckets=32,
    relative_attention_max_distance=128, feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-6,
)
UNET = dict(
    sample_size=64, in_channels=3, out_channels=6, block_out_channels=[192, 384, 576, 768], layers_per_block=3, attention_head_dim=64,
    down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3, up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift", encoder_hid_dim=4096, encoder_hid_dim_type="text_proj",
    addition_embed_type="text", addition_embed_type_num_heads=64, cross_attention_dim=768, cross_attention_norm="group_norm", act_fn="gelu",
)


def drawn(name, shape, generator):
    """Halves of a size that keeps the layers' outputs near 1, norms around 1."""
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        values = 1 + 0.2 * values
        layer = name.split(".")[2] if ".block." in name or name.startswith("encoder.block") else ""
        if "layer.1.layer_norm" in name and layer.isdigit() and int(layer) in LOUD:
            values *= 240
    elif "relative" in name or name == "shared.weight":
        values *= 0.5
    else:
        values /= shape[1] ** 0.5
    return values.half()


def write_t5(folder):
    """Shards of one layer each, so that little memory is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    T5.save_pretrained(folder)
    with init_empty_weights():
        shapes = {k: tuple(v.shape) for k, v in transformers.T5EncoderModel(T5).state_dict().items() if k != "encoder.embed_tokens.weight"}
    groups = {}
    for name in shapes:
        groups.setdefault(name.split(".")[2] if name.startswith("encoder.block") else "rest", []).append(name)
    generator, index = torch.Generator().manual_seed(1), {}
    for number, (_, names) in enumerate(groups.items(), 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file({name: drawn(name, shapes[name], generator) for name in names}, folder / file, metadata=dict(format="pt"))
        index |= {name: file for name in names}
    size = sum(2 * int(np.prod(s)) for s in shapes.values())
    (folder / "model.safetensors.index.json").write_text(imagen.json.dumps(dict(metadata=dict(total_size=size), weight_map=index)))


def tensors(folder, prefix):
    """Tensors whose names begin with `prefix`, in f32, without it."""
    weights = imagen.json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for name, file in weights.items():
        if name.startswith(prefix):
            with safe_open(folder / file, "pt") as opened:
                found[name[len(prefix):]] = opened.get_tensor(name).float()
    return found


@torch.no_grad()
def encode(folder, tokenizer, texts):
    """T5's vectors, a layer at a time. Prints how large the stream becomes."""
    from transformers.models.t5.modeling_t5 import T5Block, T5LayerNorm
    made = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    T5._attn_implementation = "eager"
    x = tensors(folder, "shared.weight")[""][made.input_ids]
    mask = (1 - made.attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    bias, largest = None, 0.0
    for layer in range(T5.num_layers):
        block = T5Block(T5, has_relative_attention_bias=layer == 0, layer_idx=layer).eval()
        block.load_state_dict(tensors(folder, f"encoder.block.{layer}."))
        x, bias = block(x, attention_mask=mask, position_bias=bias)[:2]
        largest = max(largest, float(x.abs().max()))
    print(f"the stream's largest value {largest:.4g}; the largest half is 65504")
    norm = T5LayerNorm(T5.d_model, T5.layer_norm_epsilon)
    norm.load_state_dict(tensors(folder, "encoder.final_layer_norm."))
    return norm(x)


@torch.no_grad()
def write(folder, steps):
    model = folder / "model"
    tokens, _ = imagen.tokenizer(model / "tokenizer")
    tokens.save_pretrained(model / "tokenizer")
    unet = imagen.randomise(diffusers.UNet2DConditionModel(**UNET), 2)
    unet.conv_out.weight.mul_(0.7)
    unet.conv_out.weight.copy_(unet.conv_out.weight.half().float())
    pipe = diffusers.IFPipeline(None, None, unet, imagen.scheduler(1.5), None, None, None, requires_safety_checker=False)
    pipe.save_pretrained(model)
    shutil.rmtree(model / "unet")
    unet.half().save_pretrained(model / "unet")
    unet.float()
    index = imagen.json.loads((model / "model_index.json").read_text())
    index |= dict(text_encoder=["transformers", "T5EncoderModel"], tokenizer=["transformers", "T5Tokenizer"])
    (model / "model_index.json").write_text(imagen.json.dumps(index, indent=1))
    if not (model / "text_encoder" / "model.safetensors.index.json").exists():
        write_t5(model / "text_encoder")
    negative, text = encode(model / "text_encoder", tokens, ["", PROMPT]).split(1)
    generator = torch.Generator().manual_seed(7)
    image = pipe(prompt_embeds=text, negative_prompt_embeds=negative, num_inference_steps=steps, guidance_scale=7.0, generator=generator, output_type="pt").images
    save_file(dict(text=text.contiguous(), negative=negative.contiguous(), image=image.contiguous()), folder / "reference.safetensors")


def compare(folder):
    with safe_open(folder / "reference.safetensors", "pt") as want, safe_open(folder / "dump.safetensors", "pt") as got:
        for theirs, ours in (("text", "text_embeddings"), ("negative", "negative_text_embeddings")):
            a, b = want.get_tensor(theirs), got.get_tensor(ours)
            print(theirs, "largest difference over root mean square:", float((a - b).abs().max() / a.square().mean().sqrt()))
        image = want.get_tensor("image")[0].permute(1, 2, 0)
    ours = np.asarray(Image.open(folder / "out.png").convert("RGB")).astype(float)
    theirs = ((image / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    print(f"picture: {10 * np.log10(255**2 / np.mean((ours - theirs) ** 2)):.1f} dB, off by {np.abs(ours - theirs).max():.0f}, spread {theirs.std():.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    if args.compare:
        compare(args.folder)
    else:
        args.folder.mkdir(parents=True, exist_ok=True)
        write(args.folder, args.steps)


if __name__ == "__main__":
    main()
