"""Trains the small CLIP of assets/emoji-clip on the pictures of prep.py and the captions of captions.py. usage: clip.py TOKENIZER_DIR OUT SECONDS

Subject/colour pairs of HELD_BACK and HELD_TINT (recolour.py) and a tenth of all others, chosen by a checksum of their names, are never shown; in the end
every caption of such a pair is looked up by its picture among all of them. A white background is always shown. SEED (0) fixes the first
weights and the order of the batches; how many there are depends on the machine.
"""
import math, os, queue, shutil, sys, threading, time, zlib
os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np, torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from captions import decorate, subject
from common import COLORS, NAMES, load, weights
from recolour import HELD_BACK, HELD_TINT, TO, tint, tinted_name

SIDE, BATCH, REPEATED, LENGTH = 64, 256, 64, 32
OTHERS = [c for c in NAMES if c != "white"]


def held(name, kind, colour):
    return (name, colour) in (HELD_BACK if kind == "back" else HELD_TINT) or zlib.crc32(f"{name}|{kind}|{colour}".encode()) % 10 == 0


def pictures():
    """-> items, premultiplied RGBA [N,4,64,64], those in other colours {(index, colour): [4,64,64]}"""
    pre, alpha, items = load()
    small = lambda x: F.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    base = small(np.concatenate([pre, alpha], -1))
    names, tinted = {it["name"] for it in items}, {}
    for i, it in enumerate(items):
        x = base[i].permute(1, 2, 0).numpy()
        for colour in TO:
            new = tint(x[..., :3], x[..., 3:], colour) if tinted_name(it["name"], colour, names) else None
            if new is not None: tinted[i, colour] = torch.cat([torch.from_numpy(new).permute(2, 0, 1), base[i, 3:]])
    return items, base, tinted


class Data:
    def __init__(self, rng):
        self.items, self.base, self.tinted = pictures()
        self.names = {it["name"] for it in self.items}
        self.rng, self.p = rng, weights(self.items, 0.3)
        self.p = 0.5 * self.p + 0.5 / len(self.p)
        self.shown = {}
        for i, c in self.tinted:
            if not held(self.items[i]["name"], "tint", c): self.shown.setdefault(i, []).append(c)

    def one(self, i):
        """picture [4,64,64], background, caption"""
        it, r = self.items[i], self.rng
        if i in self.shown and r.random() < 0.25:
            c = self.shown[i][r.integers(len(self.shown[i]))]
            return self.tinted[i, c], "white", decorate(tinted_name(it["name"], c, self.names), "white", r)
        back = "white" if r.random() < 0.45 else OTHERS[r.integers(len(OTHERS))]
        if back != "white" and held(it["name"], "back", back): back = "white"
        return self.base[i], back, decorate(subject(it, r), back, r)

    def batch(self):
        first = self.rng.choice(len(self.p), BATCH - REPEATED, replace=False, p=self.p)
        rows = [self.one(i) for i in np.concatenate([first, first[:REPEATED]])]  # subjects twice: colours must tell them apart
        x, n = torch.stack([q[0] for q in rows]), BATCH
        u = torch.from_numpy(self.rng.random((n, 4)).astype(np.float32))
        scale, theta = 1 / (0.88 + 0.24 * u[:, 0]), torch.zeros(n, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, :, 2] = (u[:, 1:3] - 0.5) * 0.2
        x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
        colour = torch.tensor([COLORS[q[1]] for q in rows]) / 255
        colour = (colour + torch.from_numpy(self.rng.normal(0, 0.015, (n, 3)).astype(np.float32))).clamp(0, 1)
        x = x[:, :3] + (1 - x[:, 3:]) * colour[..., None, None]
        soft = u[:, 3] < 0.3  # drawn pictures are softer than the font's
        low = int(self.rng.integers(24, 48))
        x[soft] = F.interpolate(F.interpolate(x[soft], (low, low), mode="area"), (SIDE, SIDE), mode="bilinear")
        x = x + 0.02 * torch.from_numpy(self.rng.standard_normal(x.shape, np.float32))
        return x * 2 - 1, [q[2] for q in rows]


def model(tok):
    common = dict(hidden_act="gelu", hidden_size=128, intermediate_size=512, num_attention_heads=4, projection_dim=128)
    ids = dict(vocab_size=len(tok), bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    text = dict(common, num_hidden_layers=3, max_position_embeddings=LENGTH, **ids)
    vision = dict(common, num_hidden_layers=4, image_size=SIDE, patch_size=8)
    # On CPUs the plain attention is twice as fast as the fused one, whose backward pass is slow.
    return CLIPModel._from_config(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128), attn_implementation="eager")


def batches(data):
    """one thread draws them ahead"""
    q = queue.Queue(4)

    def fill():
        while True: q.put(data.batch())
    threading.Thread(target=fill, daemon=True).start()
    while True: yield q.get()


def cosines(m, x, tokens):
    o = m(pixel_values=x, **tokens)
    return F.normalize(o.image_embeds.float(), dim=-1), F.normalize(o.text_embeds.float(), dim=-1)


@torch.no_grad()
def report(m, data, encode):
    """top-1 over the held-out pairs, and over all subjects on white"""
    at = {it["name"]: i for i, it in enumerate(data.items)}
    groups = {"subjects on unseen backgrounds": [], "subjects in unseen colours": [], "all names on white": []}
    for name, i in at.items():
        groups["all names on white"].append((data.base[i], "white", name))
        for c in OTHERS:
            if held(name, "back", c): groups["subjects on unseen backgrounds"].append((data.base[i], c, f"{name} on a {c} background".replace(" a orange", " an orange")))
    seen = set()
    for (i, c), x in data.tinted.items():
        caption = tinted_name(data.items[i]["name"], c, data.names)
        if held(data.items[i]["name"], "tint", c) and caption not in seen:
            seen.add(caption)
            groups["subjects in unseen colours"].append((x, "white", caption))
    for group, rows in groups.items():
        a, b = [], []
        for k in range(0, len(rows), 256):
            part = rows[k:k + 256]
            x = torch.stack([q[0] for q in part])
            x = x[:, :3] + (1 - x[:, 3:]) * (torch.tensor([COLORS[q[1]] for q in part]) / 255)[..., None, None]
            one, two = cosines(m, x * 2 - 1, encode([q[2] for q in part]))
            a.append(one), b.append(two)
        c = torch.cat(a) @ torch.cat(b).T
        right = c.diagonal()
        print(f"{group}: {len(rows)} pictures, top-1 {(c.argmax(1) == torch.arange(len(c))).float().mean():.3f}, top-5 {((c > right[:, None]).sum(1) < 5).float().mean():.3f}, "
              f"cosine with its caption {right.mean():.3f}, with another {(c.sum() - right.sum()) / (c.numel() - len(c)):.3f}", flush=True)


def export(m, folder, out):
    m.half().save_pretrained(out)
    for name in ("vocab.json", "merges.txt"): shutil.copy(f"{folder}/{name}", out)
    CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH).save_pretrained(f"{out}/.tok")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if os.path.exists(f"{out}/.tok/{name}"): shutil.copy(f"{out}/.tok/{name}", out)
    shutil.rmtree(f"{out}/.tok")
    half = [0.5, 0.5, 0.5]
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half).save_pretrained(out)


def main():
    folder, out, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    seed = int(os.environ.get("SEED", "0"))
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    t0 = time.time()
    data, tok = Data(np.random.default_rng(seed)), CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)
    m = model(tok)
    encode = lambda texts: tok(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    print(f"{sum(p.numel() for p in m.parameters())} parameters, {len(data.items)} pictures, {len(data.tinted)} in other colours, {time.time() - t0:.0f} s", flush=True)
    decay = [p for p in m.parameters() if p.ndim > 1]
    rest = [p for p in m.parameters() if p.ndim <= 1]
    o = torch.optim.AdamW([dict(params=decay, weight_decay=0.1), dict(params=rest, weight_decay=0)], betas=(0.9, 0.98))
    t0, mean, target = time.time(), None, torch.arange(BATCH)
    for step, (x, texts) in enumerate(batches(data)):
        done = (time.time() - t0) / seconds
        if done >= 1: break
        for g in o.param_groups: g["lr"] = 1.5e-3 * min(1, (step + 1) / 40) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            a, b = cosines(m, x, encode(texts))
        s = m.logit_scale.exp() * a @ b.T
        number = {t: k for k, t in enumerate(texts)}
        of = torch.tensor([number[t] for t in texts])
        s = s.masked_fill((of[:, None] == of[None]) & ~torch.eye(BATCH, dtype=torch.bool), -1e4)  # equal captions are no negatives
        loss = (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2
        o.zero_grad(), loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        o.step()
        with torch.no_grad(): m.logit_scale.clamp_(max=math.log(50))
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % 20 == 0: print(f"step {step} loss {mean:.3f} scale {m.logit_scale.exp().item():.1f} {time.time() - t0:.0f} s", flush=True)
    m.eval()
    report(m, data, encode)
    export(m, folder, out)
    print(f"{time.time() - t0:.0f} s", flush=True)


if __name__ == "__main__":
    main()
