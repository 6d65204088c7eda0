"""Writes tests/goldens/kandinsky/: MoVQ decoders whose weights both sides draw from their names, and tiny Kandinsky 2.2 directories.

usage: python tools/goldens/kandinsky.py

`movq.json` lists the decoders' configs, `movq.safetensors` what diffusers makes of their blocks and pictures. Folders `model` and `prior`
are `KandinskyV22Pipeline` and `KandinskyV22PriorPipeline` directories, weights in halves; `golden.safetensors` holds, per case of
`cases.json`, the image embeddings, the latent and the picture in f32.
"""
import json
import shutil
import zlib

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file

import bpe
from bpe import REPOSITORY

FOLDER = REPOSITORY / "tests" / "goldens" / "kandinsky"
# channels, whether the decoder's and the encoder's blocks attend, layers, middle attention, latent channels, (batch, height, width)
MOVQS = {
    "as_published": ([32, 64, 64], [True, False, False], [False, False, True], 1, True, 4, (1, 3, 5)),
    "attention_everywhere": ([32, 96], [True, True], [True, True], 2, False, 3, (2, 4, 3)),
    "one_level": ([64], [False], [False], 1, True, 6, (1, 5, 2)),
}
# A side that is no multiple of 4, the square of MoVQ's scale, grows.
CASES = [
    dict(name="plain", prompt="A red Apple on the table", negative_prompt=None, prior_steps=3, prior_guidance=4.0, steps=3, guidance=1.5, seed=11, width=24, height=32, scheduler="ddim"),
    dict(name="negative", prompt="two cats by the SEA", negative_prompt="a dragon", prior_steps=4, prior_guidance=2.0, steps=2, guidance=3.0, seed=5, width=16, height=16, scheduler="learned"),
    dict(name="unguided", prompt="small house at night ☺", negative_prompt=None, prior_steps=2, prior_guidance=1.0, steps=2, guidance=1.0, seed=7, width=22, height=8, scheduler="ddpm"),
    dict(name="unguided_prior", prompt="green dragon", negative_prompt="", prior_steps=2, prior_guidance=1.0, steps=3, guidance=5.0, seed=3, width=16, height=24, scheduler="ddpm"),
    dict(name="unguided_picture", prompt="chalk", negative_prompt="blue, wet", prior_steps=2, prior_guidance=3.0, steps=2, guidance=0.5, seed=9, width=8, height=8, scheduler="learned"),
]


def drawn(module):
    """Every parameter from a generator that its name seeds: norm weights around 1, vectors around 0, matrices of unit gain."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            n = torch.randn(p.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            if p.ndim == 1:
                n = 1 + 0.2 * n if name.endswith("weight") else 0.2 * n
            else:
                n = n / p[0].numel() ** 0.5
            p.copy_(n)
    return module.eval()


def movq_config(channels, up, down, layers, middle, latent):
    return dict(
        block_out_channels=channels, up_block_types=["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in up],
        down_block_types=["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in down], layers_per_block=layers, latent_channels=latent,
        mid_block_add_attention=middle, norm_num_groups=8, norm_type="spatial", num_vq_embeddings=5, vq_embed_dim=latent,
    )


def movqs():
    configs, found = {}, {}
    for name, (channels, up, down, layers, middle, latent, (batch, height, width)) in MOVQS.items():
        config = movq_config(channels, up, down, layers, middle, latent)
        model = drawn(diffusers.VQModel(**config))
        taps = {"movq.post_quant_conv": model.post_quant_conv, "movq.decoder.mid_block": model.decoder.mid_block, "movq.decoder.up_blocks.0": model.decoder.up_blocks[0]}
        for tap, module in taps.items():
            module.register_forward_hook(lambda _, __, out, key=f"{name}.{tap}": found.__setitem__(key, out))
        x = torch.randn(batch, latent, height, width, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        found[f"{name}.movq.decoder"] = model.decode(x, force_not_quantize=True).sample
        found[f"{name}.latent"] = x
        configs[name] = {k: v for k, v in model.config.items() if k[0] != "_"} | dict(_class_name="VQModel", tensors={k: list(v.shape) for k, v in model.state_dict().items()})
    save_file({k: v.contiguous() for k, v in found.items()}, FOLDER / "movq.safetensors")
    (FOLDER / "movq.json").write_text(json.dumps(configs) + "\n")


def halved(module, gain=1.0):
    """As `drawn`, rounded to halves."""
    drawn(module)
    with torch.no_grad():
        for name, p in module.named_parameters():
            table = "embedding" in name and p.ndim == 2 and "time" not in name
            p.copy_(((p * p[0].numel() ** 0.5 * 0.5 if table else p) * gain).half().float())
    return module


def pipelines():
    vocab = bpe.write_tokenizer(FOLDER / "tokens", 40, style="json")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(FOLDER / "tokens")
    width = 20
    text = halved(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=width, intermediate_size=37, projection_dim=width, num_attention_heads=2, num_hidden_layers=2, hidden_act="gelu",
        max_position_embeddings=77, bos_token_id=len(vocab) - 2, eos_token_id=len(vocab) - 1, pad_token_id=len(vocab) - 1)))
    image = halved(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=37, projection_dim=width, num_hidden_layers=2, num_attention_heads=2, image_size=30, patch_size=7, hidden_act="gelu")))
    prior = halved(diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=10, embedding_dim=width, num_layers=2))
    with torch.no_grad():
        prior.clip_std.abs_().add_(0.5)
        prior.clip_std.copy_(prior.clip_std.half().float())
    unclip = diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=5.0)
    first = diffusers.KandinskyV22PriorPipeline(prior, image, text, tokenizer, unclip, transformers.CLIPImageProcessor(crop_size=30, size=30))
    unet = halved(diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=8, block_out_channels=[8, 16], down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"], mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=12,
        attention_head_dim=8, layers_per_block=1, norm_num_groups=4, resnet_time_scale_shift="scale_shift", encoder_hid_dim=width,
        encoder_hid_dim_type="image_proj", addition_embed_type="image"))
    movq = halved(diffusers.VQModel(**movq_config([32, 32], [True, False], [False, True], 1, True, 4)))
    with torch.no_grad():
        unet.conv_out.weight.copy_((unet.conv_out.weight * 0.7).half().float())
        unet.conv_out.bias.copy_((unet.conv_out.bias * 0.3).half().float())
        movq.decoder.conv_out.weight.copy_((movq.decoder.conv_out.weight * 0.4).half().float())
    betas = dict(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
    ddim = diffusers.DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    second = diffusers.KandinskyV22Pipeline(unet, ddim, movq)
    for pipe, folder, parts in ((first, "prior", ["prior", "image_encoder", "text_encoder"]), (second, "model", ["unet", "movq"])):
        shutil.rmtree(FOLDER / folder, ignore_errors=True)
        pipe.save_pretrained(FOLDER / folder)
        pipe.set_progress_bar_config(disable=True)
        for part in parts:
            getattr(pipe, part).half().save_pretrained(FOLDER / folder / part)
            getattr(pipe, part).float()
    shutil.rmtree(FOLDER / "tokens")
    # The encoder is half of the file, and nothing here encodes a picture.
    stored = FOLDER / "model" / "movq" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(stored).items() if not k.startswith("encoder.")}, stored, {"format": "pt"})
    found = {}
    for case in CASES:
        g = torch.Generator().manual_seed(case["seed"])
        kinds = dict(ddim=ddim, ddpm=diffusers.DDPMScheduler(**betas, clip_sample_range=2.0),
                     learned=diffusers.DDPMScheduler(**betas, clip_sample_range=2.0, variance_type="learned_range"))
        second.scheduler = kinds[case["scheduler"]]
        case["scheduler"] = dict(second.scheduler.config) | dict(_class_name=type(second.scheduler).__name__)
        made = first(case["prompt"], negative_prompt=case["negative_prompt"], num_inference_steps=case["prior_steps"], guidance_scale=case["prior_guidance"], generator=g)
        given = dict(image_embeds=made.image_embeds, negative_image_embeds=made.negative_image_embeds, height=case["height"], width=case["width"],
                     num_inference_steps=case["steps"], guidance_scale=case["guidance"], generator=g)
        latent = second(**given, output_type="latent").images
        name = case["name"]
        found |= {f"{name}.image_embeds": made.image_embeds, f"{name}.negative_image_embeds": made.negative_image_embeds, f"{name}.latent": latent}
        found[f"{name}.image"] = movq.decode(latent, force_not_quantize=True).sample
    save_file({k: v.contiguous() for k, v in found.items()}, FOLDER / "golden.safetensors")
    (FOLDER / "cases.json").write_text(json.dumps(CASES, indent=1, ensure_ascii=False, default=str) + "\n")


@torch.no_grad()
def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    movqs()
    pipelines()


if __name__ == "__main__":
    main()
