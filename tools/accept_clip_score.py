"""Compares `scumble evaluate clip-score` with transformers and torchmetrics' formula on random CLIP models and pictures drawn anew.

usage: python tools/accept_clip_score.py [--cases N] [--seed S] [--binary PATH] [--first I] [--keep FOLDER]

Each case is a CLIPModel of random shape with random weights (halves), in one of the released forms (transformers' safetensors or
pytorch_model.bin, OpenCLIP's file with its config), a tokenizer of random size, pictures of random sizes, and prompts in one of
the forms that the program reads. A case passes where every cosine is within 2e-5 of transformers' and the figure within 2e-3.
"""
import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tools" / "goldens"))
import clip_models  # noqa: E402
from bpe import CLIP_MERGES, END  # noqa: E402

COSINE, FIGURE = 2e-5, 2e-3


def draw(r):
    """(text config, picture config, common width, tokenizer, form, preparation)."""
    heads = r.choice([1, 2, 3, 4])
    act = r.choice(["quick_gelu", "gelu"])
    form = r.choice(["safetensors", "safetensors", "bin", "open_clip"])
    # Single files hold no tokenizer: theirs is CLIP's own.
    merges = CLIP_MERGES if form == "open_clip" else r.choice([0, 40, 300])
    length = r.choice([12, 40, 77, 77])
    eos = 2 if form == "open_clip" or r.random() < 0.4 else 513 + merges
    text = dict(
        hidden_size=heads * r.choice([4, 6, 8, 16]), num_attention_heads=heads, num_hidden_layers=r.randint(1, 3), intermediate_size=r.randint(8, 90),
        vocab_size=514 + merges, max_position_embeddings=length, hidden_act=act, eos_token_id=eos, bos_token_id=512 + merges, pad_token_id=513 + merges,
    )
    heads = r.choice([1, 2, 3, 5])
    patch = r.choice([4, 7, 8, 14, 16, 32])
    side = patch * r.randint(1, max(1, 64 // patch)) + r.choice([0, 0, 0, 1, 3])
    vision = dict(
        hidden_size=heads * r.choice([4, 6, 10, 20]), num_attention_heads=heads, num_hidden_layers=r.randint(1, 3), intermediate_size=r.randint(8, 90),
        image_size=side, patch_size=patch, hidden_act=act,
    )
    if form == "open_clip":
        vision["image_size"] = side - side % patch
    else:
        vision["hidden_act"] = r.choice(["quick_gelu", "gelu"])
        text["layer_norm_eps"], vision["layer_norm_eps"] = r.choice([1e-5, 1e-3]), r.choice([1e-5, 1e-6, 1e-2])
    preparation = {}
    if form != "open_clip":
        if r.random() < 0.3:
            preparation["size"] = {"height": vision["image_size"] + r.randint(-3, 9), "width": vision["image_size"] + r.randint(-3, 9)}
        elif r.random() < 0.3:
            preparation["size"] = {"shortest_edge": vision["image_size"] + r.randint(-2, 12)}
        preparation["resample"] = r.choice([3, 3, 3, 2, 1])
    if r.random() < 0.3:
        preparation |= dict(image_mean=[0.5, 0.45, 0.4], image_std=[0.26, 0.3, 0.25])
    return text, vision, r.randint(3, 40), merges, form, length, preparation


def give_prompts(r, folder, names, prompts):
    """Writes the prompts in one of the forms; the words for the command line."""
    form = r.choice(["txt", "json", "csv", "folder", "jsonl"])
    path = folder / f"prompts.{form}"
    if form == "txt":
        path.write_text("".join(p + "\n" for p in prompts))
    elif form == "json":
        path.write_text(json.dumps(dict(zip(names, prompts))))
    elif form == "jsonl":
        path.write_text("".join(json.dumps(dict(file_name=n, text=p)) + "\n" for n, p in zip(names, prompts)))
    elif form == "csv":
        with path.open("w", newline="") as out:
            csv.writer(out).writerows([["file", "prompt"], *zip(names, prompts)])
    else:
        path.mkdir()
        for name, prompt in zip(names, prompts):
            (path / (name.rsplit(".", 1)[0] + ".txt")).write_text(prompt)
    return form, [str(path)]


def case(index, seed, binary, folder):
    r = random.Random(f"{seed}/{index}")
    text, vision, width, merges, form, length, preparation = draw(r)
    clip = clip_models.model(text, vision, width, r.randrange(10**6))
    style = r.choice(["files", "json", "both"])
    processor = clip_models.processor_for(folder / "clip", merges, END, length, vision["image_size"], style, **preparation)
    count = r.randint(2, 9)
    (folder / "pictures").mkdir()
    sizes = [(r.randint(12, 150), r.randint(12, 150)) for _ in range(count)]
    sizes[-1] = sizes[0]
    images = [clip_models.picture(r.randrange(10**6), *size) for size in sizes]
    names = [f"{n:02}.png" for n in range(count)]
    for name, image in zip(names, images):
        Image.fromarray(image).save(folder / "pictures" / name)
    prompts = [clip_models.text(r.randrange(10**6), 10).strip() or "x" for _ in range(count)]
    resize = "pillow" if not set(preparation) & {"size", "resample"} and r.random() < 0.3 else "torchvision"
    want = clip_models.cosines(clip, processor, images, prompts, resize)
    path = clip_models.save(clip, processor, folder / "clip", form)
    kind, words = give_prompts(r, folder, names, prompts)
    command = [binary, "evaluate", "clip-score", str(folder / "pictures"), *words, "--clip", str(path), "--json", "--each", "--resize", resize, "--batch", str(r.randint(1, 5))]
    done = subprocess.run(command, capture_output=True, text=True)
    told = f"{form}, {style}, prompts as {kind}, {resize}, patch {vision['patch_size']} of {vision['image_size']}, {preparation}"
    if done.returncode:
        return f"failed ({told}): {done.stderr.strip()}"
    found = json.loads(done.stdout)
    off = max(abs(a["cosine"] - b) for a, b in zip(found["each"], want))
    figure = abs(found["value"] - max(100 * sum(want) / len(want), 0.0))
    if not (len(found["each"]) == len(want) and off <= COSINE and figure <= FIGURE):
        return f"off by {off:.1e} and {figure:.1e} ({told})"
    print(f"case {index}: off by {off:.1e}, figure {found['value']:.4f} off by {figure:.1e} ({told})", flush=True)
    return ""


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--cases", type=int, default=10)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--binary", default=str(REPOSITORY / "target" / "release" / "scumble"))
    options.add_argument("--keep")
    args = options.parse_args()
    torch.set_num_threads(1)
    faults = []
    for index in range(args.first, args.first + args.cases):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(args.keep or place) / f"case{index}"
            folder.mkdir(parents=True)
            fault = case(index, args.seed, args.binary, folder)
        if fault:
            faults.append(f"case {index}: {fault}")
            print(faults[-1], flush=True)
    print(f"{args.cases - len(faults)} of {args.cases} cases agree")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
