"""Writes tests/goldens/clip/: CLIP's picture encoder of several shapes against transformers, state by state, and CLIP scores.

usage: python tools/goldens/clip.py

A folder a case with a `CLIPVisionModelWithProjection` in halves and `golden.safetensors`: `pixels` [B, 3, H, W], the state that
embeddings and layers give under the names of their modules, `pooled` behind the last norm, `image_embeds`.

`score` holds a folder a CLIPModel (`model`, in one of the released forms), `pictures` of several sizes and `scores.json`: for each model
and way of resizing the prompts, the cosines and the score of torchmetrics' formula. `prepared.safetensors` holds pictures as bytes and as
transformers prepares them, `preparations.json` how.
"""
import json
import shutil

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

import clip_models
from bpe import END, REPOSITORY
from clip_models import level
from imagen import randomise

FOLDER = REPOSITORY / "tests" / "goldens" / "clip"
# Patches of 7, 14, 16, 32 pixels and some that do not divide the picture; odd widths of heads and vectors; norms of other epsilons.
TOWERS = dict(
    b32=dict(hidden_size=12, intermediate_size=50, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=32, projection_dim=12),
    l14=dict(hidden_size=20, intermediate_size=33, num_hidden_layers=3, num_attention_heads=1, image_size=56, patch_size=14, projection_dim=18, hidden_act="gelu"),
    h14=dict(hidden_size=30, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3, image_size=31, patch_size=14, projection_dim=7, layer_norm_eps=1e-3),
    b16=dict(hidden_size=36, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=16, projection_dim=9, hidden_act="gelu", layer_norm_eps=1e-6),
    p7=dict(hidden_size=26, intermediate_size=21, num_hidden_layers=2, num_attention_heads=2, image_size=35, patch_size=7, projection_dim=33),
    p3=dict(hidden_size=13, intermediate_size=30, num_hidden_layers=1, num_attention_heads=1, image_size=20, patch_size=3, projection_dim=5, layer_norm_eps=1e-2),
    one=dict(hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=8, image_size=24, patch_size=24, projection_dim=16),
)


def store(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().clone().contiguous() for k, v in found.items()}, path)


def tower(name, seed):
    config = transformers.CLIPVisionConfig(**TOWERS[name])
    model = randomise(transformers.CLIPVisionModelWithProjection(config), seed)
    level(model.vision_model.embeddings)
    model.half().save_pretrained(FOLDER / name)
    model.float()
    size = config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    found = {}

    def keep(key):
        return lambda module, inputs, output: found.__setitem__(key, output[0] if isinstance(output, tuple) else output)

    vision = model.vision_model
    vision.embeddings.register_forward_hook(keep("vision_model.embeddings"))
    vision.post_layernorm.register_forward_hook(keep("vision_model.post_layernorm"))
    for index, layer in enumerate(vision.encoder.layers):
        layer.register_forward_hook(keep(f"vision_model.encoder.layers.{index}"))
    embeds = model(pixels).image_embeds
    store(FOLDER / name / "golden.safetensors", found | dict(pixels=pixels, image_embeds=embeds))


# Text encoder, picture encoder, common width, merges of the tokenizer, form of the files.
MODELS = dict(
    transformers=(
        dict(hidden_size=20, intermediate_size=30, num_hidden_layers=2, num_attention_heads=2, vocab_size=554, eos_token_id=553, bos_token_id=552, pad_token_id=553),
        dict(hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8), 14, 40, "safetensors",
    ),
    older=(
        dict(hidden_size=12, intermediate_size=25, num_hidden_layers=1, num_attention_heads=3, vocab_size=514, eos_token_id=2, bos_token_id=0, hidden_act="gelu", max_position_embeddings=20),
        dict(hidden_size=18, intermediate_size=20, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14, hidden_act="gelu"), 9, 0, "bin",
    ),
)
# One whose mean cosine is above 0, and one whose mean is below, so that the score is 0.
SEEDS = dict(transformers=100, older=91)
SIZES = [(40, 56), (57, 33), (32, 32), (20, 24), (200, 90), (40, 56), (28, 29)]
PREPARATIONS = [
    dict(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}),
    dict(size={"height": 17, "width": 30}, crop_size={"height": 20, "width": 23}, resample=2),
    dict(size={"shortest_edge": 12}, crop_size={"height": 21, "width": 15}, resample=1, image_mean=[0.5, 0.4, 0.3], image_std=[0.3, 0.2, 0.1]),
    dict(do_resize=False, crop_size={"height": 25, "width": 64}, do_normalize=False),
    dict(size={"shortest_edge": 24}, do_center_crop=False, do_rescale=False, image_mean=[100.0, 110.0, 120.0], image_std=[50.0, 60.0, 70.0]),
]


def preparations():
    """Every picture prepared in every way, each with its own rules of rounding."""
    found = {}
    for index, (height, width) in enumerate([(33, 50), (61, 27), (24, 24)]):
        image = torch.from_numpy(clip_models.picture(index, height, width)).permute(2, 0, 1)
        found[f"{index}.picture"] = image.int()
        for number, options in enumerate(PREPARATIONS):
            made = transformers.CLIPImageProcessor(**options)(images=[image], return_tensors="pt")["pixel_values"]
            found[f"{index}.{number}"] = made.float()
    store(FOLDER / "prepared.safetensors", found)
    (FOLDER / "preparations.json").write_text(json.dumps(PREPARATIONS, indent=1) + "\n")


def scores():
    folder = FOLDER / "score"
    (folder / "pictures").mkdir(parents=True)
    images = [clip_models.picture(40 + n, *size) for n, size in enumerate(SIZES)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "pictures" / f"{number}.png")
    found = {}
    for seed, (name, (text, vision, width, merges, form)) in enumerate(MODELS.items()):
        clip = clip_models.model(text, vision, width, SEEDS[name])
        target = folder / name
        length = clip.config.text_config.max_position_embeddings
        processor = clip_models.processor_for(target, merges, END, length, vision["image_size"], "both" if seed else "files")
        clip_models.save(clip, processor, target, form)
        prompts = [clip_models.text(10 * seed + n) for n in range(len(images) - 1)] + ["a very long night " * 30]
        prompts[3] = prompts[1]
        case = dict(prompts=prompts)
        for resize in ["torchvision", "pillow"]:
            cosines = clip_models.cosines(clip, processor, images, prompts, resize)
            mean = sum(cosines) / len(cosines)
            case[resize] = dict(cosines=cosines, score=max(100 * mean, 0.0))
        found[name] = case
    (folder / "scores.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


@torch.no_grad()
def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for seed, name in enumerate(TOWERS):
        tower(name, 71 + seed)
    preparations()
    scores()


if __name__ == "__main__":
    main()
