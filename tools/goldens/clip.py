"""Writes tests/goldens/clip/: CLIP's picture encoder of several shapes against transformers, state by state.

usage: python tools/goldens/clip.py

A folder a case with a `CLIPVisionModelWithProjection` in halves and `golden.safetensors`: `pixels` [B, 3, H, W], the state that
embeddings and layers give under the names of their modules, `pooled` behind the last norm, `image_embeds`.
"""
import shutil

import torch
import transformers
from safetensors.torch import save_file

from bpe import REPOSITORY
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


def level(embeddings):
    """Patches, positions and the class vector of about the same size, as halves hold them."""
    patches = embeddings.patch_embedding.weight
    patches.copy_((patches / patches[0].numel() ** 0.5).half().float())
    embeddings.class_embedding.mul_(4)


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


@torch.no_grad()
def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for seed, name in enumerate(TOWERS):
        tower(name, 71 + seed)


if __name__ == "__main__":
    main()
