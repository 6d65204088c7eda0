"""Tiny CLIPModels with random weights, pictures, and what transformers and torchmetrics' formula make of them.

`tools/goldens/clip.py` writes some of them; `tools/accept_clip_score.py` draws others anew.
"""
import json
import random
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
import transformers
from PIL import Image
from safetensors.torch import save_file

from bpe import write_tokenizer
from imagen import randomise

WORDS = "a an the red green blue apple cat dog house sea night chalk photo of two small old with on café 東京 naïve 3½ it's".split()


def level(embeddings):
    """Patches, positions and the class vector of about the same size, as halves hold them."""
    patches = embeddings.patch_embedding.weight
    patches.copy_((patches / patches[0].numel() ** 0.5).half().float())
    embeddings.class_embedding.mul_(4)


@torch.no_grad()
def model(text, vision, width, seed, scale=2.6592):
    """A CLIPModel whose numbers halves hold."""
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=width, logit_scale_init_value=scale)
    made = transformers.CLIPModel(config).eval()
    for number, part in enumerate([made.text_model, made.vision_model, made.text_projection, made.visual_projection]):
        randomise(part, 4 * seed + number)
    level(made.vision_model.embeddings)
    return made


def picture(seed, height, width):
    """Soft colours with noise and an edge: [H, W, 3] bytes."""
    r = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x * r.uniform(0.02, 0.4) + y * r.uniform(0.02, 0.4) + r.uniform(0, 6)) for _ in range(3)]
    image = np.stack(waves, -1) + r.normal(0, 12, (height, width, 3))
    image[height // 3 : height // 2, width // 4 :] = r.uniform(0, 255, 3)
    return image.clip(0, 255).astype(np.uint8)


def text(seed, words=8):
    r = random.Random(seed)
    return " ".join(r.choice(WORDS) for _ in range(r.randint(0, words)))


def open_clip_names(state, prefix=""):
    """transformers' tensors under OpenCLIP's names, the inverse of the renaming that its releases were converted with."""
    layers = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    plain = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight", "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight", "text_model.final_layer_norm.bias": "ln_final.bias",
        "vision_model.embeddings.class_embedding": "visual.class_embedding", "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding", "logit_scale": "logit_scale",
        "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight", "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
        "vision_model.post_layernorm.weight": "visual.ln_post.weight", "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    }
    out = {plain[k]: v for k, v in state.items() if k in plain}
    out["text_projection"] = state["text_projection.weight"].T
    out["visual.proj"] = state["visual_projection.weight"].T
    for tower, start in [("text_model", ""), ("vision_model", "visual.")]:
        for key, value in state.items():
            if not key.startswith(f"{tower}.encoder.layers."):
                continue
            number, rest = key[len(f"{tower}.encoder.layers.") :].split(".", 1)
            block = f"{start}transformer.resblocks.{number}."
            name, kind = rest.rsplit(".", 1)
            if name in layers:
                out[block + layers[name] + "." + kind] = value
            elif name == "self_attn.q_proj":
                parts = [state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                out[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
    count = sum(3 if "in_proj" in k else 1 for k in out)
    assert count == len(state), (count, len(state))
    return {k: v.contiguous() for k, v in out.items()}


def pillow_pixels(image, processor):
    """As OpenCLIP prepares it: Pillow resizes and rounds, columns before rows (Pillow 13 now and then takes the rows first)."""
    side, (height, width) = processor.size["shortest_edge"], image.shape[:2]
    short, long = min(height, width), max(height, width)
    other = int(side * long / short)
    size = (other, side) if width <= height else (side, other)
    columns = Image.fromarray(image).resize((size[1], height), Image.BICUBIC)
    resized = torch.from_numpy(np.asarray(columns.resize((size[1], size[0]), Image.BICUBIC)).copy()).permute(2, 0, 1)
    crop = processor.crop_size
    top, left = int((size[0] - crop["height"]) / 2.0), int((size[1] - crop["width"]) / 2.0)
    cut = tvF.crop(resized, top, left, crop["height"], crop["width"])
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    return ((cut.float() / 255 - mean) / std)[None]


@torch.no_grad()
def cosines(clip, processor, images, texts, resize="torchvision"):
    """As torchmetrics' CLIPScore: one picture [3, H, W] of bytes and one text at a time, features over their lengths."""
    found = []
    for image, words in zip(images, texts):
        if resize == "torchvision":
            pixels = processor(images=[torch.from_numpy(image).permute(2, 0, 1)], return_tensors="pt")["pixel_values"]
        else:
            pixels = pillow_pixels(image, processor.image_processor)
        ids = processor(text=[words], return_tensors="pt", padding=True, truncation=True)
        a = clip.get_image_features(pixels).pooler_output
        b = clip.get_text_features(ids["input_ids"], ids["attention_mask"]).pooler_output
        found.append(float((a / a.norm(p=2, dim=-1, keepdim=True) * (b / b.norm(p=2, dim=-1, keepdim=True))).sum(-1)))
    return found


def processor_for(folder, merges, pad, length, side, style="files", **preparation):
    """A CLIPProcessor over tokenizer files in `folder`."""
    write_tokenizer(folder, merges, pad=pad, style=style, length=length)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = length
    images = transformers.CLIPImageProcessor(**(dict(size={"shortest_edge": side}, crop_size={"height": side, "width": side}) | preparation))
    return transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def save(clip, processor, folder, form):
    """The directory or file in one of the released forms; returns the path that the program is given."""
    folder = Path(folder)
    state = {k: v.half() for k, v in clip.state_dict().items()}
    if form in ("open_clip", "openai"):
        for file in list(folder.iterdir()):
            file.unlink()
        named = open_clip_names(state)
        if form == "openai":
            named |= {k: torch.tensor(v) for k, v in dict(input_resolution=clip.config.vision_config.image_size, context_length=77, vocab_size=49408).items()}
            torch.save(named, folder / "ViT.pt")
            return folder / "ViT.pt"
        save_file(named, folder / "open_clip_model.safetensors")
        vision, words = clip.config.vision_config, clip.config.text_config
        cfg = dict(
            model_cfg=dict(
                embed_dim=clip.config.projection_dim, quick_gelu=vision.hidden_act == "quick_gelu",
                vision_cfg=dict(image_size=vision.image_size, layers=vision.num_hidden_layers, width=vision.hidden_size, head_width=vision.hidden_size // vision.num_attention_heads, patch_size=vision.patch_size),
                text_cfg=dict(context_length=words.max_position_embeddings, vocab_size=words.vocab_size, width=words.hidden_size, heads=words.num_attention_heads, layers=words.num_hidden_layers),
            ),
            preprocess_cfg=dict(mean=list(processor.image_processor.image_mean), std=list(processor.image_processor.image_std), interpolation="bicubic", resize_mode="shortest"),
        )
        (folder / "open_clip_config.json").write_text(json.dumps(cfg, indent=1) + "\n")
        return folder
    if form == "bin":
        clip.config.save_pretrained(folder)
        older = {f"{tower}.embeddings.position_ids": torch.arange(n)[None] for tower, n in [("text_model", 5), ("vision_model", 7)]}
        torch.save(state | older, folder / "pytorch_model.bin")
        images = processor.image_processor.to_dict()
        (folder / "preprocessor_config.json").write_text(json.dumps(images, default=str))
        return folder
    # The tokenizer's files stand there already, in the form that was asked for.
    clip.half().save_pretrained(folder)
    clip.float()
    images = dict(image_processor=processor.image_processor.to_dict(), processor_class="CLIPProcessor")
    (folder / "processor_config.json").write_text(json.dumps(images, default=str, indent=1) + "\n")
    return folder
