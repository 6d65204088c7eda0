"""Compares a built scumble with diffusers on random tiny pipelines. Not part of CI: it needs torch and diffusers.

usage: python tools/accept.py --binary target/release/scumble [--cases N] [--seed S] [--only I] [--precision f32,f16]
       [--exotic P] [--single-file] [--keep DIR] [--yardstick]

For each case it writes a pipeline with random weights, runs diffusers in f32 on the CPU on the stored (rounded)
weights, runs scumble, and prints the PSNR and the largest difference of the 8-bit pictures and the error of the latents
after each step. A case fails below 65 dB or with a value off by more than 2 in f32, and below 50 dB in f16 (unless
PyTorch's own f16 is below 55 dB there: then the random model amplifies errors more than a trained one does).
`--binary none` runs the diffusers side alone; `--yardstick` adds PyTorch's own f16 against its f32.
Folders of failed cases stay (under --keep) with the command beside them.
"""
import argparse
import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "goldens"))
import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import pipelines  # noqa: E402
import random_cases  # noqa: E402
import single_file_cases  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

LIMITS = dict(f32=(65.0, 2), f16=(50.0, 255))


def psnr(a, b):
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def reference(folder, spec, case, changed, dtype=torch.float32):
    pipe = pipelines.load(folder, spec.get("variant"), dtype)
    if changed:
        scheduler = getattr(diffusers, changed["cls"])
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **changed["arguments"])
    return pipelines.run(pipe, case)


def command(args, model, case, changed, predicts, precision, target):
    words = [args.binary, "generate", case["prompt"], "-m", str(model), "-W", case["width"], "-H", case["height"]]
    words += ["--steps", case["steps"], "--cfg-scale", case["guidance"], "-s", case["seed"], "--precision", precision]
    words += ["-o", target / f"{precision}.png", "--dump", target / f"{precision}.safetensors"]
    if case.get("negative_prompt") is not None:
        words += ["-n", case["negative_prompt"]]
    if case.get("guidance_rescale"):
        words += ["--guidance-rescale", case["guidance_rescale"]]
    if case.get("clip_skip"):
        words += ["--clip-skip", case["clip_skip"] + 1]
    if model.suffix == ".safetensors" and predicts:
        words += ["--prediction-type", predicts]
    if changed:
        words += ["--sampler", changed["sampler"]]
        words += ["--schedule", changed["schedule"]] if changed["schedule"] else []
    return [str(w) for w in words] + args.extra


def latent_errors(want, dump):
    """Largest error after each solver step, relative to the largest latent of that step."""
    errors, i = [], 0
    while f"latents.{i}" in want:
        a, b = want[f"latents.{i}"].float(), dump.get(f"latents.{i}")
        if b is None or b.numel() != a.numel():
            return errors + ["missing" if b is None else f"shape {tuple(b.shape)}"]
        errors.append(f"{((a - b.float().reshape(a.shape)).abs().max() / a.abs().max()).item():.1e}")
        i += 1
    return errors + (["surplus"] if f"latents.{i}" in dump else [])


def first_difference(want, dump):
    """The first thing that goes wrong, in the order of computation."""
    names = ["text_embeddings", "negative_text_embeddings", "pooled_text_embeddings", "negative_pooled_text_embeddings", "noise"]
    parts = []
    for name in names:
        if name in want and name in dump:
            a, b = want[name].float(), dump[name].float()
            if a.numel() != b.numel():
                parts.append(f"{name} {tuple(a.shape)} != {tuple(b.shape)}")
            else:
                parts.append(f"{name} {(a - b.reshape(a.shape)).abs().max().item() / max(a.abs().max().item(), 1e-9):.0e}")
    return ", ".join(parts)


def compare(args, model, target, case, changed, predicts, precision, want):
    """Runs scumble once; returns (passed, line)."""
    words = command(args, model, case, changed, predicts, precision, target)
    (target / f"{precision}.command").write_text(shlex.join(words) + "\n")
    start = time.time()
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=args.timeout, errors="replace")
    except subprocess.TimeoutExpired:
        return False, f"{precision}: no answer in {args.timeout} s"
    seconds = time.time() - start
    if done.returncode != 0:
        tail = " | ".join(done.stderr.strip().splitlines()[-3:])
        return False, f"{precision}: exit {done.returncode}: {tail}"
    got = np.asarray(Image.open(target / f"{precision}.png").convert("RGB"))
    expected = want["image"].numpy()
    if got.shape != expected.shape:
        return False, f"{precision}: picture {got.shape}, expected {expected.shape}"
    decibels, worst = psnr(got, expected), int(np.abs(got.astype(int) - expected.astype(int)).max())
    least, most = LIMITS[precision]
    passed = decibels >= least and worst <= most
    file = target / f"{precision}.safetensors"
    dump = pipelines.load_file(file) if file.exists() else {}
    line = f"{precision}: {decibels:.1f} dB, off by {worst}, latents {' '.join(latent_errors(want, dump))}, {seconds:.1f} s"
    return passed, line if passed else f"{line} [{first_difference(want, dump)}]"


def describe(spec, case, changed):
    name, arguments = spec["scheduler"]
    shown = {k: v for k, v in arguments.items() if k not in ("beta_start", "beta_end")}
    text = f"{spec['kind']} {case['width']}x{case['height']} {case['steps']} steps cfg {case['guidance']} {name} {shown}"
    text += " sparse" if spec.get("sparse_scheduler") else ""
    return text + (f" -> {changed['sampler']} {changed['schedule'] or ''}" if changed else "")


def one(args, index, root):
    """Draws, builds and compares one case; returns the list of failed precisions."""
    if args.single_file:
        spec, case, changed = single_file_cases.draw(args.seed, index)
    else:
        spec, case, changed = random_cases.draw(args.seed, index, args.exotic)
    if not args.rescale:
        case.pop("guidance_rescale", None)
    target = root / f"{args.seed}-{index}"
    shutil.rmtree(target, ignore_errors=True)
    model = target / "model"
    print(f"[{index}] {describe(spec, case, changed)}", flush=True)
    pipelines.build(spec, model)
    (target / "case.json").write_text(json.dumps(dict(spec=spec, case=case, changed=changed), indent=1, ensure_ascii=False))
    want = reference(model, spec, case, changed)
    pipelines.save_file(want, target / "reference.safetensors")
    Image.fromarray(want["image"].numpy()).save(target / "reference.png")
    try:
        pipelines.check_sane(want, str(index))
    except AssertionError as problem:
        print(f"    (weak case: {problem})")
        if "finite" in str(problem):
            shutil.rmtree(target)
            return []
    if args.yardstick:
        half = reference(model, spec, case, changed, torch.float16)
        print(f"    PyTorch's own f16: {psnr(half['image'].numpy(), want['image'].numpy()):.1f} dB", flush=True)
    failed = []
    sources = [("", model)]
    if args.single_file:
        sources.append(("single file ", single_file_cases.convert(model, target / "single.safetensors", spec["single"])))
    for label, source in sources if args.binary != "none" else []:
        for precision in args.precision.split(","):
            passed, line = compare(args, source, target, case, changed, spec["scheduler"][1].get("prediction_type"), precision, want)
            if not passed and precision == "f16" and " dB" in line:
                half = psnr(reference(model, spec, case, changed, torch.float16)["image"].numpy(), want["image"].numpy())
                line += f" (PyTorch's own f16: {half:.1f} dB)"
                passed = half < 55
            print(f"    {'ok  ' if passed else 'FAIL'} {label}{line}", flush=True)
            failed += [] if passed else [label + precision]
    if not failed:
        shutil.rmtree(target)
    else:
        print(f"    kept in {target}")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--exotic", type=float, default=0.1)
    parser.add_argument("--single-file", action="store_true")
    parser.add_argument("--yardstick", action="store_true")
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="further words for scumble, last")
    args = parser.parse_args()
    args.rescale = args.binary == "none"
    if args.binary != "none":
        args.binary = str(Path(args.binary).resolve())
        text = subprocess.run([args.binary, "generate", "--help"], capture_output=True, text=True).stdout
        args.rescale = "--guidance-rescale" in text
    root = args.keep or Path(tempfile.mkdtemp(prefix="scumble-accept-"))
    failures, broken = [], []
    for index in args.only if args.only else range(args.cases):
        try:
            failures += [(index, f) for f in one(args, index, root)]
        except Exception as problem:
            if "Expected more than 1 value per channel" in str(problem):
                print("    skipped: torch refuses a group norm over a single value")
                continue
            traceback.print_exc()
            broken.append(index)
    print(f"{len(failures)} failures {failures}; the harness itself broke on {broken}; folders under {root}")
    sys.exit(1 if failures or broken else 0)


if __name__ == "__main__":
    main()
