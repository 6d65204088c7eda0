"""Draws the same emoji with the three built-in systems and measures the pictures with `scumble evaluate`; prints the README's table.

usage: figures.py PROGRAM [--names N] [--out FOLDER] [--reuse]

N (up to 64) names, half of them favoured (iconic.txt), chosen by a seed from stretches all over the list; picture k has seed k, and a larger N begins with the same pictures. Compared with the true
pictures on white, 128 x 128, which prep.py renders (EMOJI_WORK tells where). As a scale, N other true pictures are measured as if they were drawn for the same names.
CLIP score and retrieval: the small CLIP of assets/emoji-clip (clip.py). FID: 64 channels of an Inception with random weights (tools/goldens/inception.py).
--reuse keeps pictures that are there already: only for a run that was broken off, since it does not see whether the models have changed.
"""
import argparse, json, os, subprocess, sys, time
from pathlib import Path
import numpy as np
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tools" / "goldens")]
from common import COLORS, composite, iconic, load  # noqa: E402

SYSTEMS = [("emoji", "Stable Diffusion, `emoji`"), ("emoji-dalle", "DALL-E, `emoji-dalle`"), ("emoji-imagen", "Imagen, `emoji-imagen`")]
SEED, MOST = 20261129, 64
TEXT = """{count} emoji names, half of them favoured in training, drawn by each system. The CLIP is a small one of our own, trained on the same emoji (`assets/emoji-clip`), and the Inception's
weights are seeded random numbers: these figures compare the three systems with each other and with nothing published. FID is against the true pictures of the
same names, on 64 channels; the last row, other true pictures measured as if drawn for these names, shows what pictures score that are good but wrong. FID of so few pictures is rough.
"""


def choose(items, count, rng):
    """indices of `count` names, favoured and others in turn, and of as many further ones; a larger count begins with the same names"""
    favoured, pairs = iconic(items), []
    for group in (np.flatnonzero(favoured), np.flatnonzero(~favoured)):
        pairs.append(rng.permutation([rng.choice(stretch, 2, replace=False) for stretch in np.array_split(group, MOST // 2)]))
    both = np.stack(pairs, 1).reshape(MOST, 2)[:count]
    return both[:, 0], both[:, 1]


def program(binary, *words):
    done = subprocess.run([binary, *map(str, words)], capture_output=True, text=True)
    if done.returncode: sys.exit(f"scumble {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def save_true(folder, indices, pre, alpha):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"): old.unlink()
    for k, i in enumerate(indices):
        x = (composite(pre[i], alpha[i], COLORS["white"]) + 1) * 127.5
        Image.fromarray(x.round().clip(0, 255).astype(np.uint8)).save(folder / f"{k:03}.png")


def draw(binary, out, names, reuse):
    """one name by all systems, then the next"""
    for system, _ in SYSTEMS:
        (out / system).mkdir(parents=True, exist_ok=True)
        for old in (out / system).glob("*.png"):
            if not reuse or int(old.stem) >= len(names): old.unlink()
    seconds = {system: 0.0 for system, _ in SYSTEMS}
    for k, name in enumerate(names):
        for system, _ in SYSTEMS:
            path = out / system / f"{k:03}.png"
            if path.exists(): continue
            t0 = time.time()
            program(binary, "generate", name, "-m", system, "--seed", k, "--output", path)
            seconds[system] += time.time() - t0
        print(f"{k + 1} of {len(names)}: {name}; seconds in all: " + ", ".join(f"{s} {t:.0f}" for s, t in seconds.items()), file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--names", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("target/figures"))
    parser.add_argument("--reuse", action="store_true")
    given = parser.parse_args()
    if not 2 <= given.names <= MOST: parser.error(f"--names: expected 2 to {MOST}, found {given.names}")
    pre, alpha, items = load()
    first, second = choose(items, given.names, np.random.default_rng(SEED))
    names = [items[i]["name"] for i in first]
    out = given.out
    save_true(out / "true", first, pre, alpha)
    save_true(out / "others", second, pre, alpha)
    (out / "prompts.txt").write_text("".join(n + "\n" for n in names))
    draw(given.program, out, names, given.reuse)
    inception_file = out / "inception.safetensors"
    if not inception_file.exists():
        import inception
        save_file({k: v.contiguous() for k, v in inception.state().items() if v.is_floating_point()}, inception_file)
    rows = []
    for folder, title in [*SYSTEMS, ("true", "the true pictures"), ("others", "true pictures of other names")]:
        score = json.loads(program(given.program, "evaluate", "clip-score", out / folder, out / "prompts.txt", "--clip", ROOT / "assets" / "emoji-clip", "--retrieval", "--json"))
        row = [title, f"{score['value']:.1f}", f"{score['retrieval']['top_1'] * len(names):.0f}"]
        if folder == "true":
            row.append("-")
        else:
            found = json.loads(program(given.program, "evaluate", "fid", out / "true", out / folder, "--inception", inception_file, "--dims", 64, "--json"))
            row.append(f"{found['value']:.3f}")
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    print(TEXT.format(count=len(names)))
    print(f"| {len(names)} pictures | CLIP score | own name fits best | FID |\n|---|---|---|---|")
    for row in rows: print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
