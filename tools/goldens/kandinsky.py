"""Writes tests/goldens/kandinsky/: MoVQ decoders whose weights both sides draw from their names, and tiny Kandinsky 2.2 directories.

usage: python tools/goldens/kandinsky.py

`movq.json` lists the decoders' configs, `movq.safetensors` what diffusers makes of their blocks and pictures. Folders `model` and `prior`
are `KandinskyV22Pipeline` and `KandinskyV22PriorPipeline` directories, weights in halves; `golden.safetensors` holds, per case of
`cases.json`, the image embeddings, the latent and the picture in f32.
"""
import json
import zlib

import diffusers
import torch
from safetensors.torch import save_file

from bpe import REPOSITORY

FOLDER = REPOSITORY / "tests" / "goldens" / "kandinsky"
# channels, whether the decoder's and the encoder's blocks attend, layers, middle attention, latent channels, (batch, height, width)
MOVQS = {
    "as_published": ([32, 64, 64], [True, False, False], [False, False, True], 1, True, 4, (1, 3, 5)),
    "attention_everywhere": ([32, 96], [True, True], [True, True], 2, False, 3, (2, 4, 3)),
    "one_level": ([64], [False], [False], 1, True, 6, (1, 5, 2)),
}


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
        configs[name] = dict(model.config) | dict(_class_name="VQModel", tensors={k: list(v.shape) for k, v in model.state_dict().items()})
    save_file({k: v.contiguous() for k, v in found.items()}, FOLDER / "movq.safetensors")
    (FOLDER / "movq.json").write_text(json.dumps(configs) + "\n")


@torch.no_grad()
def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    movqs()


if __name__ == "__main__":
    main()
