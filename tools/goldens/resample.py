"""Writes tests/goldens/resample.safetensors: pictures resized by PyTorch (f32, and 8-bit) and Pillow (mode F, and 8-bit).

usage: python tools/goldens/resample.py

Tensors are `INDEX.x` and `INDEX.y`, channels last; the metadata entry `cases` is JSON, INDEX -> method and options.
"""
import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from bpe import REPOSITORY
from pipelines import generator_for

tensors, cases = {}, {}
SIZES = [((7, 10), (11, 23)), ((23, 14), (9, 5)), ((13, 12), (12, 13)), ((5, 6), (10, 12)), ((31, 9), (8, 27)), ((1, 6), (3, 1)), ((9, 11), (9, 5))]
METHODS = [
    ("nearest", {}), ("nearest-exact", {}), ("area", {}), ("bilinear", dict(align_corners=False)), ("bilinear", dict(align_corners=True)),
    ("bicubic", dict(align_corners=False)), ("bicubic", dict(align_corners=True)),
    ("bilinear", dict(align_corners=False, antialias=True)), ("bicubic", dict(align_corners=False, antialias=True)),
]
FILTERS = dict(box=Image.BOX, bilinear=Image.BILINEAR, bicubic=Image.BICUBIC, lanczos=Image.LANCZOS)


def put(x, y, **facts):
    index = str(len(cases))
    tensors[index + ".x"], tensors[index + ".y"] = x.contiguous().clone(), y.contiguous()
    cases[index] = facts


def torch_cases(source, target):
    x = torch.randn(2, 3, *source, generator=generator_for(f"resample{source}", 2)) * 2 + 0.3
    for mode, options in METHODS:
        y = F.interpolate(x, size=target, mode=mode, **options)
        put(x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1), library="torch", mode=mode, **options)


def pillow_cases(source, target):
    x = torch.rand(*source, 3, generator=generator_for(f"pillow{source}", 2)) * 255
    bytes_ = x.round().to(torch.uint8)
    for name, number in FILTERS.items():
        planes = [np.asarray(Image.fromarray(x[..., c].numpy()).resize(target[::-1], number)) for c in range(3)]
        put(x[None], torch.from_numpy(np.stack(planes, -1))[None], library="pillow", mode=name)
        # Columns, then rows, as Pillow up to 12 does it; 13 takes the rows first where that is cheaper.
        columns = Image.fromarray(bytes_.numpy()).resize((target[1], source[0]), number)
        y = np.asarray(columns.resize(target[::-1], number))
        put(bytes_[None].float(), torch.from_numpy(y.copy())[None].float(), library="pillow 8-bit", mode=name)


def torch_8_bit_cases(source, target):
    x = (torch.rand(2, 3, *source, generator=generator_for(f"torch 8-bit{source}", 2)) * 255).round().to(torch.uint8)
    for mode in ["bilinear", "bicubic", "lanczos"]:
        y = F.interpolate(x, size=target, mode=mode, align_corners=False, antialias=True)
        put(x.permute(0, 2, 3, 1).float(), y.permute(0, 2, 3, 1).float(), library="torch 8-bit", mode=mode)


if __name__ == "__main__":
    for source, target in SIZES:
        torch_cases(source, target)
        pillow_cases(source, target)
    for source, target in SIZES:
        torch_8_bit_cases(source, target)
    path = REPOSITORY / "tests" / "goldens" / "resample.safetensors"
    save_file(tensors, path, metadata={"cases": json.dumps(cases)})
    print(f"{len(cases)} pictures, {path.stat().st_size / 1024:.0f} KiB")
