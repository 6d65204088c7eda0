"""Writes tests/goldens/evaluate/: what pytorch-fid, clean-fid, torchmetrics, numpy and scipy make of random pictures and features.

usage: python tools/goldens/evaluate.py      (needs pytorch-fid, clean-fid, torchmetrics, torch-fidelity and scipy beside the others)

`inception.safetensors` holds pictures (`picture.N`, u8), for every variant their features (`VARIANT.DIMS.N`) and, for the first picture, means
and deviations of every block's output (`tap.NAME`). The network's weights follow from a seed (tools/goldens/inception.py).
`statistics.safetensors` holds random features (`a.N`, `b.N`), FID and KID of them, `mean` and `covariance` of the first, and permutations; `stats.npz` statistics as
pytorch-fid saves them. `tests/goldens/keys/FID_InceptionV3.tsv` and `FID_InceptionV3_script.tsv` list the tensors of both published files.
"""
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from cleanfid.fid import frechet_distance as clean_frechet
from cleanfid.fid import kernel_distance
from cleanfid.resize import build_resizer
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.torch import save_file
from torch.nn.functional import adaptive_avg_pool2d
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import KernelInceptionDistance

import inception
from bpe import REPOSITORY

FOLDER = REPOSITORY / "tests" / "goldens" / "evaluate"
KEYS = REPOSITORY / "tests" / "goldens" / "keys"
SIZES = [(37, 53), (64, 48), (331, 20)]
DIMS = [64, 192, 768, 2048]


def picture(seed, height, width):
    """Noise over a coarser noise, so that resizing matters and values reach both ends."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)[0]
    fine = torch.rand(3, height, width, generator=generator)
    return ((1.6 * (0.6 * smooth + 0.4 * fine) - 0.3).clamp(0, 1) * 255).round().to(torch.uint8)


def prepared(variant, pixels):
    """[3, H, W] of 8 bits -> [1, 3, 299, 299] for the network."""
    x = pixels[None].float()
    if variant == "pytorch-fid":
        x = torch.nn.functional.interpolate(x / 255, size=(299, 299), mode="bilinear", align_corners=False)
        return 2 * x - 1
    if variant == "clean-fid":
        resized = build_resizer("clean")(pixels.permute(1, 2, 0).numpy())
        return (torch.from_numpy(resized).permute(2, 0, 1)[None] - 128) / 128
    x = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False, antialias=True)
    return (x - 128) / 128


def features(network, x):
    network.resize_input = network.normalize_input = False
    return adaptive_avg_pool2d(network(x)[0], (1, 1)).flatten()


def manifest(name, tensors):
    lines = [f"{key}\t{','.join(str(axis) for axis in value.shape)}" for key, value in tensors]
    (KEYS / f"{name}.tsv").write_text("\n".join(lines) + "\n")


def pictures():
    state = inception.state()
    manifest("FID_InceptionV3", state.items())
    traced, _ = inception.script()
    manifest("FID_InceptionV3_script", traced.state_dict().items())
    networks = {dims: inception.network(dims, state) for dims in DIMS}
    found = {}
    for number, (height, width) in enumerate(SIZES):
        pixels = picture(number, height, width)
        found[f"picture.{number}"] = pixels.permute(1, 2, 0).contiguous()
        for variant in ["pytorch-fid", "clean-fid", "torchmetrics"]:
            x = prepared(variant, pixels)
            for dims in DIMS if variant == "pytorch-fid" else [2048]:
                found[f"{variant}.{dims}.{number}"] = features(networks[dims], x)
        # What the programs themselves make of it.
        own = inception.network(2048, state)(pixels[None].float() / 255)[0].flatten()
        torch.testing.assert_close(own, found[f"pytorch-fid.2048.{number}"])
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(state, file.name)
        for dims in DIMS:
            network = inception.torchmetrics_network(dims, file.name)
            pixels = picture(0, *SIZES[0])
            own = network(pixels[None]).flatten()
            found[f"torchmetrics.{dims}.0"] = own
    taps(state, prepared("pytorch-fid", picture(0, *SIZES[0])), found)
    for name, value in found.items():
        if not name.startswith("picture"):
            assert value.isfinite().all() and value.std() > 0.01, name
    save_file({k: v.detach().clone().contiguous() for k, v in found.items()}, FOLDER / "inception.safetensors")


def taps(state, x, found):
    """Of every block and convolution of the stem: mean and deviation of each channel."""
    network = inception.network(2048, state)
    network.resize_input = network.normalize_input = False
    stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", None, "Conv2d_3b_1x1", "Conv2d_4a_3x3", None]
    mixed = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]
    layers = [layer for block in network.blocks for layer in block]
    for name, layer in zip(stem + [f"Mixed_{block}" for block in mixed] + [None], layers):
        x = layer(x)
        if name:
            found[f"tap.{name}"] = torch.stack([x.mean((0, 2, 3)), x.std((0, 2, 3))])


def statistics():
    """Full rank (150 of 64), singular (20 and 35 of 48), one of each, and features that hardly differ."""
    found, facts = {}, []
    for number, (a, b, dims, shift) in enumerate([(150, 140, 64, 0.3), (20, 35, 48, 1.0), (90, 30, 48, 0.5), (200, 200, 32, 0.0)]):
        generator = torch.Generator().manual_seed(100 + number)
        mix = torch.randn(dims, dims, generator=generator) / dims**0.5
        x = torch.randn(a, dims, generator=generator) @ mix
        y = torch.randn(b, dims, generator=generator) @ (mix + 0.1 * shift * torch.randn(dims, dims, generator=generator)) + shift
        wide = [set.double().numpy() for set in (x, y)]
        (m1, s1), (m2, s2) = [(set.mean(0), np.cov(set, rowvar=False)) for set in wide]
        fid = calculate_frechet_distance(m1, s1, m2, s2)
        clean = clean_frechet(m1, s1, m2, s2)
        metrics = _compute_fid(*[torch.from_numpy(part) for part in (m1, s1, m2, s2)]).item()
        size = min(a, b) // 2
        distance = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=20, subset_size=size).set_dtype(torch.float64)
        torch.manual_seed(7 + number)
        distance.real_features, distance.fake_features = [x.double()], [y.double()]
        mean, deviation = distance.compute()
        np.random.seed(0)
        whole = kernel_distance(*wide, num_subsets=1, max_subset_size=10**6) if a == b else None
        facts.append(dict(fid=float(fid), clean_fid=float(clean), torchmetrics_fid=metrics, subsets=20, subset_size=size, seed=7 + number, kid=mean.item(), deviation=deviation.item(), whole_kid=whole))
        found |= {f"a.{number}": x, f"b.{number}": y}
        if number == 0:
            found |= dict(mean=torch.from_numpy(m1), covariance=torch.from_numpy(s1))
            np.savez_compressed(FOLDER / "stats.npz", mu=m2, sigma=s2)
    for n in (1, 2, 7, 1000):
        generator = torch.Generator().manual_seed(n)
        found[f"permutation.{n}"] = torch.stack([torch.randperm(n, generator=generator) for _ in range(2)]).int()
    save_file({k: v.contiguous() for k, v in found.items()}, FOLDER / "statistics.safetensors", metadata=dict(facts=json.dumps(facts)))
    print(json.dumps(facts, indent=1))


@torch.no_grad()
def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    statistics()
    pictures()
    for path in sorted(FOLDER.iterdir()):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
