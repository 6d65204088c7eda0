"""Writes tests/goldens/imagen/: tiny DeepFloyd IF stages with random weights, T5 encoders, and what diffusers draws with them.

usage: python tools/goldens/imagen.py

Folders `I` and `II` are `IFPipeline` and `IFSuperResolutionPipeline` directories, weights in halves; `golden.safetensors` holds,
per case of `cases.json`, ids, masks, text vectors and the pictures of both stages in f32. `t5_relu` is an encoder of
another shape, with the hidden states behind every layer.
"""
import json
import shutil

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bpe import REPOSITORY

FOLDER = REPOSITORY / "tests" / "goldens" / "imagen"
WORDS = "a red apple on the blue table green dragon with wings small house by sea two cats drawn in chalk at night".split()
CASES = [
    dict(name="plain", prompt="A red Apple on the table", negative_prompt=None, steps=3, guidance=7.0, seed=11, width=16, height=24, sr_steps=2, level=250),
    dict(name="negative", prompt="  two cats\nby the SEA ", negative_prompt="a dragon", steps=4, guidance=3.0, seed=5, width=8, height=8, sr_steps=3, level=100),
    dict(name="unguided", prompt="small house at night ☺", negative_prompt=None, steps=2, guidance=1.0, seed=7, width=24, height=8, sr_steps=2, level=0),
    dict(name="square", prompt="green dragon with wings", negative_prompt="chalk", steps=2, guidance=2.0, seed=3, width=16, height=16, sr_steps=2, level=50),
    dict(name="long", prompt=" ".join(WORDS * 6), negative_prompt="", steps=2, guidance=5.0, seed=9, width=8, height=16, sr_steps=2, level=999),
]


def randomise(module, seed, gain=1.0):
    """Every parameter drawn anew, as halves hold it: norm weights around 1, biases, tables, matrices of unit gain."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            n = torch.randn(p.shape, generator=g)
            if p.ndim == 1:
                n = 1 + 0.2 * n if name.endswith("weight") else 0.2 * n
            elif "embedding" in name or name == "shared.weight" or "relative" in name:
                n = 0.5 * n
            else:
                n = n * gain / p[0].numel() ** 0.5
            p.copy_(n.half().float())
    return module.eval()


def tokenizer(folder):
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator([" ".join(WORDS)] * 9 + WORDS, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>"))
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return transformers.T5TokenizerFast.from_pretrained(folder, extra_ids=0), made.get_vocab_size()


def unet(seed, **more):
    config = dict(
        block_out_channels=[8, 16], cross_attention_dim=32, attention_head_dim=8, layers_per_block=1, norm_num_groups=4, out_channels=6,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"], up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift", encoder_hid_dim=24, addition_embed_type="text",
        addition_embed_type_num_heads=2, cross_attention_norm="group_norm", act_fn="gelu",
    )
    model = randomise(diffusers.UNet2DConditionModel(**(config | more)), seed)
    with torch.no_grad():
        model.conv_out.weight.copy_((model.conv_out.weight * 0.7).half().float())
    return model


def scheduler(limit):
    return diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=limit
    )


def save(pipe, folder):
    """The directory, its weights in halves."""
    pipe.save_pretrained(folder)
    for part in ("unet", "text_encoder"):
        module = getattr(pipe, part)
        if module is not None:
            module.half().save_pretrained(folder / part)
            module.float()


def relu():
    config = transformers.T5Config(
        vocab_size=50, d_model=20, d_kv=6, d_ff=37, num_layers=3, num_heads=3, relative_attention_num_buckets=8, relative_attention_max_distance=20,
        feed_forward_proj="relu", layer_norm_epsilon=1e-5,
    )
    encoder = randomise(transformers.T5EncoderModel(config), 77, 0.7)
    folder = FOLDER / "t5_relu"
    encoder.half().save_pretrained(folder)
    encoder.float()
    ids = torch.randint(3, 50, (2, 33), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    states = encoder(ids, attention_mask=mask, output_hidden_states=True)
    found = {f"hidden.{i}": state for i, state in enumerate(states.hidden_states)} | dict(ids=ids.int(), mask=mask.int(), last=states.last_hidden_state)
    save_file({k: v.clone().contiguous() for k, v in found.items()}, folder / "golden.safetensors")


@torch.no_grad()
def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    tokens, size = tokenizer(FOLDER / "tokens")
    shutil.rmtree(FOLDER / "tokens")
    config = transformers.T5Config(
        vocab_size=size + 3, d_model=24, d_kv=8, d_ff=36, num_layers=2, num_heads=4, relative_attention_num_buckets=16, relative_attention_max_distance=40,
        feed_forward_proj="gated-gelu",
    )
    encoder = randomise(transformers.T5EncoderModel(config), 1, 0.7)
    first = diffusers.IFPipeline(tokens, encoder, unet(2, sample_size=16, in_channels=3), scheduler(1.5), None, None, None, requires_safety_checker=False)
    wide = unet(
        3, sample_size=32, in_channels=6, class_embed_type="timestep", mid_block_scale_factor=1.414, resnet_skip_time_act=True, only_cross_attention=True,
        mid_block_only_cross_attention=True, resnet_out_scale_factor=1.414, time_embedding_act_fn="gelu", time_embedding_dim=24, layers_per_block=[1, 2],
    )
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    second = diffusers.IFSuperResolutionPipeline(None, None, wide, scheduler(1.0), noising, None, None, None, requires_safety_checker=False)
    save(first, FOLDER / "I")
    save(second, FOLDER / "II")
    found = {}
    for case in CASES:
        name = case["name"]
        clean = first._text_preprocessing(case["prompt"])[0]
        made = tokens(clean, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        found[f"{name}.ids"], found[f"{name}.mask"] = made.input_ids.int(), made.attention_mask.int()
        text, negative = first.encode_prompt(case["prompt"], True, negative_prompt=case["negative_prompt"])
        found[f"{name}.text"], found[f"{name}.negative"] = text, negative
        g = torch.Generator().manual_seed(case["seed"])
        given = dict(prompt_embeds=text, negative_prompt_embeds=negative, generator=g, output_type="pt")
        image = first(num_inference_steps=case["steps"], guidance_scale=case["guidance"], width=case["width"], height=case["height"], **given).images
        large = second(
            image=image, num_inference_steps=case["sr_steps"], guidance_scale=4.0, noise_level=case["level"], width=2 * case["width"] + 8, height=2 * case["height"], **given
        ).images
        found[f"{name}.I"], found[f"{name}.II"] = image, large
        if name == "plain":
            given["generator"] = torch.Generator().manual_seed(case["seed"])
            alone = second(
                image=image, num_inference_steps=case["sr_steps"], guidance_scale=4.0, noise_level=case["level"], width=2 * case["width"] + 8, height=2 * case["height"], **given
            )
            found["alone.II"] = alone.images
    g = torch.Generator().manual_seed(4)
    text, negative = first.encode_prompt("a red apple", True)
    from diffusers.pipelines.deepfloyd_if.timesteps import smart27_timesteps

    listed = first(prompt_embeds=text, negative_prompt_embeds=negative, generator=g, timesteps=smart27_timesteps, output_type="pt", width=8, height=8)
    found["smart27"] = listed.images
    save_file({k: v.contiguous() for k, v in found.items()}, FOLDER / "golden.safetensors")
    (FOLDER / "cases.json").write_text(json.dumps(CASES, indent=1, ensure_ascii=False) + "\n")
    relu()


if __name__ == "__main__":
    main()
