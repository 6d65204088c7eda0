"""Times the work of `scumble bench` in PyTorch and stable-diffusion.cpp and prints the ratios side by side.

scumble is run first (or its report is read with --scumble-json). Every convolution, linear layer and attention of a
model's size in that report is then timed in PyTorch, eager and compiled, on the same shapes and number format; the UNet
step likewise with diffusers, where it is installed; a whole picture with stable-diffusion.cpp, where its program and a model
are given. Work is compared only where both sides count the same floating-point operations.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import kernels
import unet

ROOT = Path(__file__).resolve().parents[2]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="PyTorch's device (default: cuda where there is one)")
    parser.add_argument("--precision", choices=["f32", "f16"], help="number format (default: f16 on cuda, f32 on cpu)")
    parser.add_argument("--scumble", default=shutil.which("scumble"), help="the program (default: the one on PATH)")
    parser.add_argument("--scumble-json", type=Path, help="a report of scumble bench --json instead of a run")
    parser.add_argument("--adapter", help="the adapter that scumble takes")
    parser.add_argument("--only", choices=["kernels", "step"], help="time only these")
    parser.add_argument("--model", default="sd15", help="emoji, sd15, sd21 or sdxl (default: sd15)")
    parser.add_argument("--size", default="512x512", help="width and height of the picture in pixels")
    parser.add_argument("--runs", type=int, default=5, help="timed runs at the least")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--sd-cpp", default=shutil.which("sd"), help="stable-diffusion.cpp's program (default: sd on PATH)")
    parser.add_argument("--sd-cpp-model", help="the model file that it draws with; nothing is timed without")
    parser.add_argument("--steps", type=int, default=20, help="steps of its picture")
    parser.add_argument("--json", type=Path, help="also write the comparison to this file")
    return parser.parse_args()


def scumble_report(args):
    """What scumble measures, from its own JSON."""
    if args.scumble_json:
        return json.loads(args.scumble_json.read_text())
    program = args.scumble or ROOT / "target" / "release" / "scumble"
    if not Path(program).exists():
        sys.exit(f"no scumble at {program}: give --scumble or --scumble-json")
    report = {"rows": []}
    parts = [args.only] if args.only else ["kernels", "step"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        for part in parts:
            command = [program, "bench", part, "--precision", args.precision, "--runs", str(args.runs), "--json", path]
            command += ["--adapter", args.adapter] if args.adapter else []
            command += ["--model", args.model, "--size", args.size] if part == "step" else []
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = json.loads(path.read_text())
            rows = report["rows"] + found["rows"]
            report = {**report, **found, "rows": rows}
    return report


def sd_cpp(args):
    """Seconds a step and of the decoding, as stable-diffusion.cpp's log tells them."""
    if not args.sd_cpp or not args.sd_cpp_model:
        return None
    width, height = args.size.split("x")
    with tempfile.TemporaryDirectory() as folder:
        command = [args.sd_cpp, "-m", args.sd_cpp_model, "-p", "a lighthouse at dawn", "-W", width, "-H", height]
        command += ["--steps", str(args.steps), "-s", "7", "-o", os.path.join(folder, "picture.png"), "-v"]
        done = subprocess.run(command, capture_output=True, text=True)
    log = done.stdout + done.stderr
    if done.returncode:
        print(f"stable-diffusion.cpp failed with {done.returncode}: {log.strip().splitlines()[-1:]}")
        return None
    sampling = re.search(r"sampling completed, taking ([\d.]+)s", log)
    decoding = re.search(r"(?:decode_first_stage completed|latent 1 decoded), taking ([\d.]+)s", log)
    if not sampling:
        print("stable-diffusion.cpp's log does not tell how long sampling took")
        return None
    return {"step": float(sampling[1]) / args.steps, "decode": float(decoding[1]) if decoding else None}


def show(rows):
    """A table; a ratio above 1 says how many times faster scumble is."""
    width = max([len(row["name"]) for row in rows] + [4])
    print(f"{'':<{width}}  {'scumble':>12}  {'other':>12}  {'ratio':>7}  other")
    for row in rows:
        ratio = f"{row['ratio']:.2f}"
        print(f"{row['name']:<{width}}  {row['scumble'] * 1e3:>9.3f} ms  {row['other'] * 1e3:>9.3f} ms  {ratio:>7}  {row['what']}")


def main():
    args = arguments()
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.precision = args.precision or ("f16" if args.device == "cuda" else "f32")
    report = scumble_report(args)
    other = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"scumble: {report['adapter']}, {report.get('clock', 'wall clock')}")
    print(f"torch {torch.__version__}: {other}, {args.precision}")
    rows = []

    def add(name, seconds, what, scumble):
        if seconds is not None:
            rows.append({"name": name, "scumble": scumble, "other": seconds, "ratio": seconds / scumble, "what": what})

    for row in report["rows"]:
        if args.only == "step" or not row["verified"] or row["seconds"] <= 0:
            continue
        for what, seconds in kernels.times(row, args):
            add(row["name"], seconds, what, row["seconds"])
    step = report.get("step_seconds")
    if step and args.only != "kernels":
        for what, seconds in unet.times(ROOT, report, args):
            add("step", seconds, what, step)
        cpp = sd_cpp(args)
        if cpp:
            add("step", cpp["step"], "stable-diffusion.cpp", step)
            if report.get("decode_seconds"):
                add("decode", cpp["decode"], "stable-diffusion.cpp", report["decode_seconds"])
        else:
            print("stable-diffusion.cpp: not timed (needs its program and --sd-cpp-model)")
    if not rows:
        sys.exit("nothing to compare: the report has no row of a model's size in this precision")
    show(rows)
    if args.json:
        facts = {"scumble": report["adapter"], "torch": torch.__version__, "device": other, "precision": args.precision}
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
