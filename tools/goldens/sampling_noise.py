"""Draws of torch's CPU generator for src/sampling/noise.rs: python tools/goldens/sampling_noise.py"""

import json
from pathlib import Path

import torch

OUT = Path(__file__).resolve().parents[2] / "tests/goldens/sampling/noise.json"
SEEDS = [0, 1, 42, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 1]
SIZES = [1, 3, 15, 16, 17, 2, 31, 64, 1, 1000, 15, 4 * 8 * 9, 16384, 5, 100003]


def main():
    cases = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        calls = []
        for n in SIZES:
            bits = [int(v) & 0xFFFFFFFF for v in torch.randn(n, generator=generator).view(torch.int32)]
            digest = 0
            for b in bits:
                digest = (digest * 31 + b) % 2**64
            calls.append({"n": n, "first": bits[:8], "hash": str(digest)})
        cases.append({"seed": str(seed), "calls": calls})
    OUT.write_text(json.dumps(cases, separators=(",", ":")) + "\n")


main()
