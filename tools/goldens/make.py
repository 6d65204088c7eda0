"""Writes tests/goldens/pipelines/: tiny pipelines with random weights and what diffusers draws with them.

usage: python tools/goldens/make.py [CASE...]      (all cases, and `emoji`, if none is named)
"""
import json
import shutil
import sys

import torch

import cases
import pipelines
from bpe import REPOSITORY

ROOT = REPOSITORY / "tests" / "goldens" / "pipelines"


def small(out):
    """The tensors as stored: f32 and i32, the picture u8, taps of the first evaluation."""
    return {k: v if v.dtype in (torch.uint8, torch.int32) else v.to(torch.float32) for k, v in out.items()}


def write(folder, spec, case, out):
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text()) if spec else None
    record = pipelines.CALL_DEFAULTS | case
    if scheduler:
        record["scheduler"] = scheduler["_class_name"]
        record["kind"] = spec["kind"]
    (folder / "case.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    pipelines.save_file(small(out), folder / "golden.safetensors")


def size_of(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def make(name):
    spec, case, taps = cases.CASES[name]()
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    pipelines.build(spec, folder)
    out = pipelines.run(pipelines.load(folder), case, taps)
    write(folder, spec, case, out)
    report(name, folder, out)


def make_emoji():
    folder = ROOT / "emoji"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out = pipelines.run(pipelines.load(REPOSITORY / "assets" / "emoji"), cases.EMOJI)
    write(folder, None, cases.EMOJI, out)
    report("emoji", folder, out)


def report(name, folder, out):
    spread, clipped = pipelines.check_sane(out, name)
    kib = size_of(folder) / 1024
    golden = (folder / "golden.safetensors").stat().st_size / 1024
    print(f"{name:15} {kib:6.0f} KiB (golden {golden:.0f}), spread {spread:5.1f}, clipped {100 * clipped:4.1f} %, {len(out)} tensors", flush=True)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or [*cases.CASES, "emoji"]:
        make_emoji() if wanted == "emoji" else make(wanted)
