"""Writes tests/goldens/karlo/: tiny Karlos with random weights, what diffusers draws with them, and priors of every option.

usage: python tools/goldens/karlo.py

Folders `plain` and `uneven` are `UnCLIPPipeline` directories, weights in halves, with `golden.safetensors`: per case of their
`cases.json` the text's vectors, the picture's embedding, what the decoder reads, the small picture and the picture, in f32. The
`prior_*` folders are transformers with inputs and the tokens behind every block.
"""
import json
import shutil

import diffusers
import torch
import transformers
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from safetensors.torch import save_file

import bpe
from bpe import REPOSITORY
from imagen import randomise

FOLDER = REPOSITORY / "tests" / "goldens" / "karlo"
PARTS = ["prior", "text_encoder", "text_proj", "decoder", "super_res_first", "super_res_last"]
# The last prompt does not fit, and its guidance of the prior runs at 1 and of the decoder below 1 beside the other's.
CASES = [
    dict(name="plain", prompt="A red Apple on the table", prior_steps=3, prior_guidance=4.0, steps=3, guidance=8.0, sr_steps=3, seed=11),
    dict(name="unguided", prompt="small house at night", prior_steps=2, prior_guidance=1.0, steps=2, guidance=0.0, sr_steps=2, seed=5),
    dict(name="half", prompt="two cats drawn in chalk", prior_steps=2, prior_guidance=3.0, steps=4, guidance=0.5, sr_steps=2, seed=7),
    dict(name="long", prompt="a green dragon with wings by the sea " * 20, prior_steps=2, prior_guidance=1.0, steps=2, guidance=5.0, sr_steps=4, seed=2**33 + 9),
]
PRIORS = dict(
    prior_defaults=dict(num_attention_heads=2, attention_head_dim=12, num_layers=2, embedding_dim=20, num_embeddings=9),
    prior_norms=dict(
        num_attention_heads=3, attention_head_dim=6, num_layers=1, embedding_dim=16, num_embeddings=7, norm_in_type="layer", embedding_proj_norm_type="layer",
        time_embed_act_fn="gelu", time_embed_dim=28, embedding_proj_dim=12, clip_embed_dim=10,
    ),
    prior_no_token=dict(
        num_attention_heads=1, attention_head_dim=22, num_layers=3, embedding_dim=22, num_embeddings=5, added_emb_type=None, additional_embeddings=3,
        encoder_hid_proj_type=None, time_embed_act_fn="relu",
    ),
)


def prior(seed, **config):
    """A prior with tables that count, and a deviation that is one."""
    model = randomise(diffusers.PriorTransformer(**config), seed)
    g = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for table in (model.prd_embedding, model.clip_mean):
            if table is not None:
                table.copy_((0.5 * torch.randn(table.shape, generator=g)).half().float())
        model.clip_std.copy_((0.6 + torch.rand(model.clip_std.shape, generator=g)).half().float())
    return model


def clip(folder, width, seed, **more):
    vocabulary = bpe.write_tokenizer(folder, 40, style="json")
    config = dict(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=37, projection_dim=width, num_attention_heads=2, num_hidden_layers=2,
        hidden_act="quick_gelu", max_position_embeddings=77, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1, pad_token_id=len(vocabulary) - 1,
    )
    encoder = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**(config | more)))
    return randomise(encoder, seed), transformers.CLIPTokenizer.from_pretrained(folder)


def quieter(unet):
    with torch.no_grad():
        unet.conv_out.weight.copy_((0.7 * unet.conv_out.weight).half().float())
    return unet


def decoder(seed, **more):
    config = dict(
        in_channels=3, out_channels=6, block_out_channels=[8, 12], attention_head_dim=4, layers_per_block=1, norm_num_groups=4, time_embedding_dim=16,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"], up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift", class_embed_type="identity",
    )
    return quieter(randomise(diffusers.UNet2DConditionModel(**(config | more)), seed))


def enlarger(seed, **more):
    config = dict(
        in_channels=6, out_channels=3, block_out_channels=[8, 12], layers_per_block=1, norm_num_groups=4, time_embedding_dim=16, down_block_types=["ResnetDownsampleBlock2D"] * 2,
        up_block_types=["ResnetUpsampleBlock2D"] * 2, add_attention=False, resnet_time_scale_shift="scale_shift",
    )
    return quieter(randomise(diffusers.UNet2DModel(**(config | more)), seed))


def projections(seed, decoder, width, tokens):
    config = dict(
        clip_embeddings_dim=width, time_embed_dim=decoder.time_embedding.linear_2.out_features, cross_attention_dim=decoder.config.cross_attention_dim,
        clip_extra_context_tokens=tokens,
    )
    model = randomise(UnCLIPTextProjModel(**config), seed)
    return model


def schedulers(limit, prediction="epsilon", **more):
    """Of prior, decoder and enlargement. A random model's noise makes black and white of a picture; its samples do not."""
    first = diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=limit)
    second = diffusers.UnCLIPScheduler(variance_type="learned_range", prediction_type=prediction, **more)
    return first, second, diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type=prediction)


def watched(step, scheduler, name, states):
    """A scheduler's step that keeps every sample."""

    def wrapped(*args, **given):
        made = step(scheduler, *args, **given)
        count = sum(key.startswith(name + ".") for key in states)
        states[f"{name}.{count}"] = made.prev_sample
        return made

    return wrapped


def draw(pipe, folder, cases):
    """The directory with its weights in halves, and what diffusers draws."""
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    for part in PARTS:
        module = getattr(pipe, part)
        module.half().save_pretrained(folder / part)
        module.float()
    found = {}
    for case in cases:
        name, seen, states = case["name"], {}, {}
        for stage, scheduler in (("prior.", pipe.prior_scheduler), ("", pipe.decoder_scheduler), ("sr.", pipe.super_res_scheduler)):
            scheduler.step = watched(type(scheduler).step, scheduler, f"{name}.{stage}latents", states)
        handles = [
            pipe.text_proj.register_forward_pre_hook(lambda _, __, given: seen.update(given), with_kwargs=True),
            pipe.super_res_first.register_forward_pre_hook(lambda _, __, given: seen.update(dict(given) | seen), with_kwargs=True),
        ]
        image = pipe(
            prompt=case["prompt"], prior_num_inference_steps=case["prior_steps"], decoder_num_inference_steps=case["steps"],
            super_res_num_inference_steps=case["sr_steps"], prior_guidance_scale=case["prior_guidance"], decoder_guidance_scale=case["guidance"],
            generator=torch.Generator().manual_seed(case["seed"]), output_type="pt",
        ).images
        for handle in handles:
            handle.remove()
        found |= states
        found[f"{name}.text"] = seen["text_encoder_hidden_states"][-1:]
        found[f"{name}.text_embedding"] = seen["prompt_embeds"][-1:]
        found[f"{name}.embedding"] = seen["image_embeddings"]
        found[f"{name}.low"] = seen["sample"][:, 3:]
        found[f"{name}.image"] = torch.from_numpy(image).permute(0, 3, 1, 2)
    save_file({key: value.detach().clone().contiguous() for key, value in found.items()}, folder / "golden.safetensors")
    (folder / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


def pipelines():
    encoder, tokenizer = clip(FOLDER / "tokens", 24, 1)
    small = decoder(2, sample_size=8, cross_attention_dim=16)
    pipe = diffusers.UnCLIPPipeline(
        prior(3, num_attention_heads=2, attention_head_dim=12, num_layers=2, embedding_dim=24), small, encoder, tokenizer, projections(4, small, 24, 4),
        enlarger(5, sample_size=16), enlarger(6, sample_size=16), *schedulers(5.0),
    )
    draw(pipe, FOLDER / "plain", CASES)
    # Widths that do not end on whole vectors, other sizes of everything, nothing clipped in the decoder, more enlargement than twice.
    encoder, tokenizer = clip(FOLDER / "tokens", 18, 11, num_hidden_layers=1, num_attention_heads=3, hidden_act="gelu")
    small = decoder(
        12, sample_size=8, cross_attention_dim=10, block_out_channels=[8, 4, 12], attention_head_dim=4, layers_per_block=[1, 2, 1], time_embedding_dim=22,
        down_block_types=["SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"],
    )
    pipe = diffusers.UnCLIPPipeline(
        prior(13, num_attention_heads=3, attention_head_dim=6, num_layers=1, embedding_dim=18, time_embed_act_fn="gelu", norm_in_type="layer"),
        small, encoder, tokenizer, projections(14, small, 18, 3), enlarger(15, sample_size=20, resnet_time_scale_shift="default"),
        enlarger(16, sample_size=20, block_out_channels=[4, 8, 8], down_block_types=["ResnetDownsampleBlock2D"] * 3, up_block_types=["ResnetUpsampleBlock2D"] * 3),
        *schedulers(2.0, "sample", clip_sample=False),
    )
    draw(pipe, FOLDER / "uneven", CASES[:3])
    shutil.rmtree(FOLDER / "tokens")


def priors():
    for seed, (name, config) in enumerate(PRIORS.items()):
        folder = FOLDER / name
        model = prior(20 + 2 * seed, **config)
        model.half().save_pretrained(folder)
        model.float()
        g = torch.Generator().manual_seed(40 + seed)
        batch, width, tokens = 3, model.config.embedding_dim, model.config.num_embeddings
        text = width if model.config.encoder_hid_proj_type else model.proj_in.out_features
        given = dict(
            sample=torch.randn(batch, width, generator=g), vectors=torch.randn(batch, tokens, text, generator=g),
            embedding=torch.randn(batch, model.config.embedding_proj_dim or width, generator=g), mask=torch.ones(batch, tokens),
        )
        given["mask"][0, 2:] = 0
        given["mask"][1, : tokens - 3] = 0
        found = {}
        handles = [block.register_forward_hook(lambda _, __, out, key=f"prior.transformer_blocks.{i}": found.update({key: out})) for i, block in enumerate(model.transformer_blocks)]
        first = model.norm_in or model.transformer_blocks[0]
        handles.append(first.register_forward_pre_hook(lambda _, args: found.update({"prior.tokens": args[0]})))
        made = model(given["sample"], 731, given["embedding"], given["vectors"], given["mask"].bool()).predicted_image_embedding
        for handle in handles:
            handle.remove()
        found["prior"] = made.reshape(batch, -1)
        found["finished"] = model.post_process_latents(found["prior"])
        save_file({key: value.detach().clone().contiguous() for key, value in (given | found).items()}, folder / "golden.safetensors")


def published():
    """The configs of the released model (kakaobrain's karlo-v1-alpha), as diffusers' conversion script writes them, without weights."""
    attention, resnet = ["SimpleCrossAttnDownBlock2D"] * 3, "ResnetDownsampleBlock2D"
    pixels = dict(block_out_channels=[320, 640, 960, 1280], layers_per_block=3, sample_size=64, in_channels=3, out_channels=6, attention_head_dim=64)
    large = pixels | dict(
        _class_name="UNet2DModel", sample_size=256, in_channels=6, out_channels=3, add_attention=False, resnet_time_scale_shift="default", attention_head_dim=8,
        down_block_types=[resnet] * 4, up_block_types=["ResnetUpsampleBlock2D"] * 4,
    )
    configs = dict(
        prior=("PriorTransformer", dict(num_attention_heads=32, attention_head_dim=64, num_layers=20, embedding_dim=768, num_embeddings=77, additional_embeddings=4)),
        text_encoder=("CLIPTextModelWithProjection", dict(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu", projection_dim=768, vocab_size=49408)),
        text_proj=("UnCLIPTextProjModel", dict(clip_embeddings_dim=768, clip_extra_context_tokens=4, cross_attention_dim=1536, time_embed_dim=1280)),
        decoder=("UNet2DConditionModel", pixels | dict(
            _class_name="UNet2DConditionModel", class_embed_type="identity", cross_attention_dim=1536, resnet_time_scale_shift="scale_shift",
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", down_block_types=[resnet, *attention],
            up_block_types=[*[name.replace("Down", "Up") for name in attention], "ResnetUpsampleBlock2D"])),
        super_res_first=("UNet2DModel", large),
        super_res_last=("UNet2DModel", large),
    )
    fixed = dict(variance_type="fixed_small_log", num_train_timesteps=1000, clip_sample=True)
    schedulers = dict(
        prior_scheduler=fixed | dict(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=fixed | dict(variance_type="learned_range", prediction_type="epsilon", clip_sample_range=1.0),
        super_res_scheduler=fixed | dict(prediction_type="epsilon", clip_sample_range=1.0),
    )
    index = dict(_class_name="UnCLIPPipeline", tokenizer=["transformers", "CLIPTokenizer"])
    for part, (name, config) in configs.items():
        index[part] = ["transformers" if part == "text_encoder" else "unclip" if part == "text_proj" else "diffusers", name]
        write(FOLDER / "published" / part / "config.json", config)
    for part, config in schedulers.items():
        index[part] = ["diffusers", "UnCLIPScheduler"]
        write(FOLDER / "published" / part / "scheduler_config.json", config)
    write(FOLDER / "published" / "model_index.json", index)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


@torch.no_grad()
def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    pipelines()
    priors()
    published()


if __name__ == "__main__":
    main()
