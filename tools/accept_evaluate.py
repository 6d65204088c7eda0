"""Compares `scumble evaluate` end to end with pytorch-fid, clean-fid and torchmetrics: random weights, random pictures of different sizes.

usage: python tools/accept_evaluate.py --binary target/release/scumble

Needs torch, torchvision, scipy, pytorch-fid, clean-fid, torchmetrics and torch-fidelity; downloads nothing. Every figure must agree to 1e-3
relative, the features to 1e-3 of the largest. FID is compared where its covariances have full rank: on 64 channels, for which few pictures do.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools" / "goldens"))
import cleanfid.features
import cleanfid.fid
import inception
import pytorch_fid.fid_score
import pytorch_fid.inception
from cleanfid.inception_torchscript import InceptionV3W
from evaluate import picture
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

MANY, FEW = (90, 80), (10, 10)
TOLERANCE = 1e-3
failed = []


def check(what, got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    off = np.abs(got - want).max() / np.abs(want).max()
    good = off <= TOLERANCE
    print(f"{'ok  ' if good else 'FAIL'} {what}: {np.ravel(got)[0]:.8g} and {np.ravel(want)[0]:.8g}, off by {off:.1e}", flush=True)
    if not good:
        failed.append(what)


def scumble(*words):
    environment = dict(os.environ, SCUMBLE_CACHE_DIR="")
    done = subprocess.run([BINARY, "evaluate", *map(str, words)], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"scumble evaluate {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def figure(*words):
    return json.loads(scumble(*words, "--json"))


def make_pictures(folder, counts):
    sides = [np.random.default_rng(number) for number in range(2)]
    for name, count, sizes in zip("ab", counts, sides):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            height, width = sizes.integers(16, 200, 2)
            pixels = picture(1000 * (name == "b") + number, int(height), int(width)).float()
            if name == "b":
                pixels = pixels * 0.8 + 30
            kind = Image.fromarray(pixels.round().to(torch.uint8).permute(1, 2, 0).numpy())
            kind.save(folder / name / f"{number}.{['png', 'bmp', 'webp'][number % 3]}", **(dict(lossless=True) if number % 3 == 2 else {}))
    return folder / "a", folder / "b"


def batches(folder):
    for path in sorted(folder.iterdir()):
        yield torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]


def with_pytorch_fid(state, many, few, file):
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    want = pytorch_fid.fid_score.calculate_fid_given_paths(list(map(str, many)), 1, "cpu", 64, 0)
    found = figure("fid", *many, "--inception", file, "--dims", 64, "--batch", 7)
    assert found["variant"] == "pytorch-fid" and found["a"]["pictures"] == MANY[0] and any("warning" in note for note in found["notes"])
    check("FID of 64 channels, pytorch-fid", found["value"], want)
    ours, theirs = many[0].parent / "ours.npz", many[0].parent / "theirs.npz"
    scumble("stats", many[0], ours, "--inception", file, "--dims", 64)
    pytorch_fid.fid_score.save_fid_stats([str(many[1]), str(theirs)], 1, "cpu", 64, 0)
    want = pytorch_fid.fid_score.calculate_fid_given_paths([str(ours), str(many[1])], 1, "cpu", 64, 0)
    check("FID, statistics of scumble read by pytorch-fid", figure("fid", ours, many[1], "--inception", file, "--dims", 64)["value"], want)
    check("FID, statistics of both, without pictures", figure("fid", ours, theirs, "--dims", 64)["value"], want)
    features = few[0].parent / "features.npz"
    scumble("stats", few[0], features, "--inception", file, "--features")
    model = inception.network(2048, state)
    # In scumble's order, which is that of the names; pytorch-fid takes one ending after the other and sorts, too.
    paths = sorted(few[0].iterdir())
    want = pytorch_fid.fid_score.get_activations(paths, model, 1, 2048, "cpu", 0)
    check("features of 2048 channels, pytorch-fid", np.load(features)["feats"], want)


def with_clean_fid(few, many, folder, file):
    base = lambda *_, **__: InceptionV3W(str(folder), download=False, resize_inside=False).eval()
    cleanfid.features.InceptionV3W = base
    model = cleanfid.features.build_feature_extractor("clean", torch.device("cpu"), use_dataparallel=False)
    options = dict(num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False, batch_size=4)
    wanted = [cleanfid.fid.get_folder_features(str(path), model, **options) for path in few]
    features = few[0].parent / "clean.npz"
    scumble("stats", few[0], features, "--inception", file, "--variant", "clean", "--features")
    # clean-fid globs one ending after the other and sorts the whole, as scumble does.
    check("features, clean-fid", np.load(features)["feats"], wanted[0])
    want = cleanfid.fid.kernel_distance(*[part.astype(np.float64) for part in wanted])
    check("KID, clean-fid", figure("kid", features, few[1], "--inception", file, "--variant", "clean-fid")["value"], want)


def with_torchmetrics(many, few, file):
    distance = FrechetInceptionDistance(feature=64, feature_extractor_weights_path=str(file)).set_dtype(torch.float64)
    for path, real in zip(many, [True, False]):
        for batch in batches(path):
            distance.update(batch, real=real)
    check("FID of 64 channels, torchmetrics", figure("fid", *many, "--inception", file, "--dims", 64, "--variant", "torchmetrics")["value"], distance.compute())
    network = inception.torchmetrics_network(2048, file)
    distance = KernelInceptionDistance(feature=network, subsets=50, subset_size=6)
    for path, real in zip(few, [True, False]):
        for batch in batches(path):
            distance.update(batch, real=real)
    torch.manual_seed(5)
    distance.real_features, distance.fake_features = [[torch.cat(part).double()] for part in (distance.real_features, distance.fake_features)]
    mean, deviation = distance.compute()
    found = figure("kid", *few, "--inception", file, "--variant", "torchmetrics", "--subsets", 50, "--subset-size", 6, "--seed", 5)
    check("KID, torchmetrics", found["value"], mean)
    check("deviation of KID, torchmetrics", found["deviation"], deviation)


@torch.no_grad()
def main():
    state = inception.state()
    traced, source = inception.script()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        many, few = make_pictures(folder / "many", MANY), make_pictures(folder / "few", FEW)
        torch.save(state, folder / "state.pth")
        save_file({k: v.contiguous() for k, v in state.items() if v.is_floating_point()}, folder / "state.safetensors")
        torch.jit.save(traced, folder / "inception-2015-12-05.pt")
        with_torchmetrics(many, few, folder / "state.pth")
        with_clean_fid(few, many, folder, folder / "inception-2015-12-05.pt")
        with_pytorch_fid(state, many, few, folder / "state.safetensors")
    print(f"{len(failed)} failed" if failed else "all agree")
    sys.exit(bool(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "scumble"))
    BINARY = parser.parse_args().binary
    main()
