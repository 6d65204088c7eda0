"""Writes DALL-E mini at full size with random f16 weights in min-dalle's files, to time it: 0.9 GB.

usage: python tools/full_size_dalle.py FOLDER
then:  scumble generate "a red apple on the table" -m FOLDER -s 7 --precision f32 -o out.png

Names and shapes are those of the published files (`tests/goldens/keys/dalle_*.tsv`). The words are those of the small test models.
"""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "goldens"))
import dalle  # noqa: E402

KEYS = dalle.REPOSITORY / "tests" / "goldens" / "keys"


def random_state(manifest, seed):
    """Matrices of unit gain, norm weights around 1, small biases."""
    g, state = torch.Generator().manual_seed(seed), {}
    for line in (KEYS / manifest).read_text().splitlines():
        name, shape = line.split("\t")
        shape = [int(n) for n in shape.split(",")]
        x = torch.randn(shape, generator=g)
        if len(shape) == 1:
            x = 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
        elif "embed" not in name:
            x /= x[0].numel() ** 0.5
        state[name] = x.half()
    return state


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    dalle.tokenizer_files(folder)
    parts = [("dalle_mini_encoder", "encoder"), ("dalle_mini_decoder", "decoder"), ("dalle_vqgan", "detoker")]
    for seed, (manifest, part) in enumerate(parts):
        torch.save(random_state(f"{manifest}.tsv", seed), folder / f"{part}.pt")


if __name__ == "__main__":
    main()
