"""Tiny pipelines whose every structural number can be read back from a single file's keys and shapes.

A single file holds no config, so what the three published architectures have in common must hold: 32 norm groups, 8
heads (SD 1) or heads of 64 (SD 2, XL), text heads of 64, 256-wide time ids, 4 VAE levels, scaling 0.18215 or 0.13025.
"""
import random

import random_cases
import single_file
from bpe import CLIP_MERGES
from cases import SD_BETAS

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
PUBLISHED = dict(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)


def unet(channels, cross, context, **more):
    config = dict(block_out_channels=channels, layers_per_block=2, cross_attention_dim=context, sample_size=8)
    config["down_block_types"] = [CROSS if c else PLAIN for c in cross]
    config["up_block_types"] = ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)]
    return config | more


def vae(scaling):
    config = dict(block_out_channels=[32, 32, 64, 64], layers_per_block=2, latent_channels=4, sample_size=64, scaling_factor=scaling)
    return config | dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)


def text(hidden, layers, act, **more):
    config = dict(hidden_size=hidden, num_attention_heads=hidden // 64, num_hidden_layers=layers, intermediate_size=4 * hidden)
    return config | dict(hidden_act=act, projection_dim=hidden) | more


def draw(seed, index):
    r = random.Random(f"single/{seed}/{index}")
    single = ("sd1", "sdxl", "sd2")[index % 3]
    spec = dict(kind="sdxl" if single == "sdxl" else "sd", single=single, seed=r.randrange(10**6), dtype=r.choice(["f16", "f16", "f32"]))
    spec["tokenizer"] = dict(merge_count=CLIP_MERGES, pad="!" if single == "sd2" else "<|endoftext|>")
    spec |= dict(scheduler=("PNDMScheduler", SD_BETAS | PUBLISHED), scheduler_extra=dict(clip_sample=False))
    if single == "sd1":
        spec["unet"] = unet([32, 64, 64, 32], [1, 1, 1, 0], 768, attention_head_dim=8)
        spec["text"] = text(768, 2, "quick_gelu")
    elif single == "sd2":
        more = dict(attention_head_dim=[1, 2, 1, 1], use_linear_projection=True)
        spec["unet"] = unet([64, 128, 64, 64], [1, 1, 1, 0], 1024, **more)
        spec["text"] = text(1024, 2, "gelu")
        spec["scheduler"] = ("DDIMScheduler", SD_BETAS | dict(set_alpha_to_one=False, steps_offset=1, clip_sample=False, prediction_type="epsilon"))
    else:
        more = dict(attention_head_dim=[1, 1, 2], use_linear_projection=True, transformer_layers_per_block=[1, 2, 3])
        more |= dict(addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=1536 + 64)
        spec["unet"] = unet([32, 64, 128], [0, 1, 1], 768 + 64, **more)
        spec |= dict(text=text(768, 2, "quick_gelu"), text_2=text(64, 11, "gelu"), tokenizer_2=dict(pad="!"))
        spec["scheduler"] = ("EulerDiscreteScheduler", SD_BETAS | dict(timestep_spacing="leading", steps_offset=1))
    spec["vae"] = vae(0.13025 if single == "sdxl" else 0.18215)
    case = dict(prompt=random_cases.prompt(r), height=8 * r.randint(3, 8), width=8 * r.randint(3, 8), steps=3, guidance=5.0, seed=r.randrange(2**32))
    case["negative_prompt"] = random_cases.prompt(r, "short") if r.random() < 0.5 else None
    return spec, case, None


def convert(model, path, kind):
    single_file.write_single_file(model, path, kind)
    single_file.check_round_trip(model, path, kind)
    return path
