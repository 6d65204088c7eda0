"""Writes tests/goldens/upscale/: tiny x4 upscalers with random weights, pictures, and what diffusers draws with them; and the names
of the published upscaler's single file (tests/goldens/keys/).

usage: python tools/goldens/upscale.py      (after tools/goldens/imagen.py, whose second stage is used too)

Folders `plain` and `three` are `StableDiffusionUpscalePipeline` directories, weights in halves; `golden.safetensors` holds the enlarged
pictures of `cases.json` in f32, before rounding.
"""
import json
import shutil

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

import bpe
import imagen
import single_file
from bpe import REPOSITORY

FOLDER = REPOSITORY / "tests" / "goldens" / "upscale"
KEYS = REPOSITORY / "tests" / "goldens" / "keys"
CASES = [
    dict(name="guided", model="plain", picture="wide", prompt="A red Apple", negative_prompt="blue, old", steps=3, guidance=9.0, level=20, seed=11),
    dict(name="unguided", model="plain", picture="wide", prompt="two cats", negative_prompt=None, steps=2, guidance=1.0, level=0, seed=5),
    # Sides that are no multiples of 4.
    dict(name="uneven", model="plain", picture="uneven", prompt="", negative_prompt=None, steps=2, guidance=3.0, level=49, seed=7),
    dict(name="euler", model="plain", picture="wide", prompt="small house", negative_prompt=None, steps=3, guidance=4.0, level=33, seed=2, sampler="euler"),
    # Noise in every step.
    dict(name="ancestral", model="three", picture="tall", prompt="green dragon", negative_prompt="", steps=3, guidance=5.0, level=350, seed=3),
]
SAMPLERS = dict(euler=diffusers.EulerDiscreteScheduler)


def text(folder, seed, width, **more):
    vocab = bpe.write_tokenizer(folder, 40, style="json")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=width, num_attention_heads=2, max_position_embeddings=77, bos_token_id=len(vocab) - 2,
        eos_token_id=len(vocab) - 1, pad_token_id=len(vocab) - 1, **more,
    )
    return imagen.randomise(transformers.CLIPTextModel(config), seed), tokenizer


def halves(module):
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(p.half().float())
    return module


def vae(seed, channels, groups, layers, scaling):
    levels = len(channels)
    model = imagen.randomise(diffusers.AutoencoderKL(
        block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
        norm_num_groups=groups, latent_channels=4, layers_per_block=layers, scaling_factor=scaling), seed)
    with torch.no_grad():
        model.post_quant_conv.weight.mul_(0.05)
        model.decoder.conv_out.weight.mul_(0.4)
    return halves(model)


def unet(seed, context, **config):
    model = imagen.randomise(diffusers.UNet2DConditionModel(sample_size=16, in_channels=7, out_channels=4, cross_attention_dim=context, **config), seed)
    with torch.no_grad():
        model.conv_out.weight.mul_(0.7)
    return halves(model)


def noising():
    return diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.02)


def plain(folder):
    encoder, tokenizer = text(folder, 1, 16, intermediate_size=37, num_hidden_layers=2, hidden_act="gelu")
    net = unet(
        2, 16, block_out_channels=[8, 16], down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1, norm_num_groups=4, attention_head_dim=2, only_cross_attention=[True, False], num_class_embeds=50, use_linear_projection=True,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    # The pipeline puts the autoencoder's scale right.
    return diffusers.StableDiffusionUpscalePipeline(vae(3, [8, 8, 16], 4, 1, 0.2), encoder, tokenizer, net, noising(), scheduler, max_noise_level=49)


def three(folder):
    encoder, tokenizer = text(folder, 4, 24, intermediate_size=48, num_hidden_layers=1, hidden_act="quick_gelu")
    net = unet(
        5, 24, block_out_channels=[8, 12, 16], down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], layers_per_block=1, norm_num_groups=2, attention_head_dim=[2, 3, 4],
        only_cross_attention=True, num_class_embeds=400,
    )
    scheduler = diffusers.EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon", timestep_spacing="trailing")
    return diffusers.StableDiffusionUpscalePipeline(vae(6, [4, 8, 8], 2, 2, 0.08333), encoder, tokenizer, net, noising(), scheduler)


def save(pipe, folder):
    """The directory, its weights in halves."""
    pipe.save_pretrained(folder)
    for part in ("unet", "text_encoder", "vae"):
        getattr(pipe, part).half().save_pretrained(folder / part)
        getattr(pipe, part).float()


def picture(name, size, seed):
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.BICUBIC)
    image.save(FOLDER / f"{name}.png")
    return image


def draw(pipe, case, image):
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler
    if "sampler" in case:
        pipe.scheduler = SAMPLERS[case["sampler"]].from_config(own.config)
    made = pipe(
        prompt=case["prompt"], negative_prompt=case["negative_prompt"], image=image, num_inference_steps=case["steps"], guidance_scale=case["guidance"],
        noise_level=case["level"], generator=torch.Generator().manual_seed(case["seed"]), output_type="latent",
    ).images
    pipe.scheduler = own
    return pipe.vae.decode(made / pipe.vae.config.scaling_factor).sample


def second_stage(image):
    """IF's second stage on a picture from a file, with the first one's text encoder; 8 bits, as its pictures are written."""
    first = diffusers.IFPipeline.from_pretrained(imagen.FOLDER / "I", requires_safety_checker=False)
    parts = dict(text_encoder=first.text_encoder.float(), tokenizer=first.tokenizer, requires_safety_checker=False)
    pipe = diffusers.IFSuperResolutionPipeline.from_pretrained(imagen.FOLDER / "II", **parts)
    pipe.unet.float()
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        prompt="two cats in chalk", negative_prompt="dragon", image=image, num_inference_steps=2, guidance_scale=3.0, noise_level=100, height=32, width=32,
        generator=torch.Generator().manual_seed(21), clean_caption=False,
    ).images[0]
    return torch.from_numpy(np.asarray(made).copy())


def manifests():
    """Names and shapes of the published upscaler's UNet and autoencoder: diffusers' and those of the single file."""
    channels = [256, 512, 512, 1024]
    cross = ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3
    with torch.device("meta"):
        net = diffusers.UNet2DConditionModel(
            sample_size=128, in_channels=7, out_channels=4, block_out_channels=channels, down_block_types=cross,
            up_block_types=["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"], only_cross_attention=[True, True, True, False], attention_head_dim=8,
            num_class_embeds=1000, use_linear_projection=True, cross_attention_dim=1024,
        )
        decoder = diffusers.AutoencoderKL(
            block_out_channels=[128, 256, 512], down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, latent_channels=4,
            layers_per_block=2, norm_num_groups=32,
        )
    parts = {"unet": dict(net.state_dict()), "vae": dict(decoder.state_dict())}
    files = {
        "SD_x4_VAE_f4": parts["vae"],
        "ORIG_SD_x4_unet": single_file.prefixed("model.diffusion_model.", single_file.convert_unet(parts["unet"], 4)),
        "ORIG_SD_x4_vae": single_file.prefixed("first_stage_model.", single_file.convert_vae(parts["vae"], 3)),
    }
    check(parts, files, net, decoder)
    for name, tensors in files.items():
        lines = [f"{key}\t{','.join(str(axis) for axis in tensor.shape)}\n" for key, tensor in tensors.items()]
        (KEYS / f"{name}.tsv").write_text("".join(lines))


def check(parts, files, net, decoder):
    """diffusers' own converters must give its names back."""
    from diffusers.loaders import single_file_utils as reference

    whole = files["ORIG_SD_x4_unet"] | files["ORIG_SD_x4_vae"]
    for part, convert, config in (
        ("unet", reference.convert_ldm_unet_checkpoint, net.config), ("vae", reference.convert_ldm_vae_checkpoint, decoder.config)
    ):
        got = convert(dict(whole), dict(config))
        assert got.keys() == parts[part].keys(), (part, sorted(got.keys() ^ parts[part].keys()))
        assert all(got[key].numel() == tensor.numel() for key, tensor in parts[part].items()), part


@torch.no_grad()
def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    pictures = {name: picture(name, size, seed) for name, size, seed in (("wide", (16, 12), 1), ("tall", (8, 20), 2), ("uneven", (19, 14), 3))}
    found = {}
    for name, make in (("plain", plain), ("three", three)):
        pipe = make(FOLDER / "tokens")
        shutil.rmtree(FOLDER / "tokens")
        save(pipe, FOLDER / name)
        for case in CASES:
            if case["model"] == name:
                found[case["name"]] = draw(pipe, case, pictures[case["picture"]])
                print(case["name"], tuple(found[case["name"]].shape), f"spread {found[case['name']].std():.2f}")
        written = FOLDER / name / "vae" / "config.json"
        if name == "plain":
            config = json.loads(written.read_text()) | dict(scaling_factor=0.2)
            written.write_text(json.dumps(config, indent=2) + "\n")
    found["second_stage"] = second_stage(pictures["wide"])
    save_file({k: v.contiguous() for k, v in found.items()}, FOLDER / "golden.safetensors")
    (FOLDER / "cases.json").write_text(json.dumps(CASES, indent=1, ensure_ascii=False) + "\n")
    manifests()


if __name__ == "__main__":
    main()
