"""Pictures with captions for every text-conditioned model: premultiplied RGBA at one size, the background chosen per sample."""
import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import numpy as np, torch
from common import *
from captions import caption, decorate
from recolour import HELD_BACK, HELD_TINT, TO, dominant, tint, tinted_name


class Data:
    """A picture's number is its emoji's, plus (1 + place in TO) * N where it is tinted. Pairs in HELD_BACK and HELD_TINT are never drawn."""

    def __init__(s, size, share, seed, tints=0.):
        s.pre, s.alpha, s.items = load(); n, s.k = len(s.pre), 128 // size
        s.x = s.small(np.concatenate([s.pre, s.alpha], -1)); s.tints = tints; s.made = {}
        s.names = {it["name"] for it in s.items}; s.held = set(HELD_BACK), set(HELD_TINT)
        s.clear = np.array([dominant(p, a)[1] > .45 for p, a in zip(s.pre, s.alpha)]) if tints else np.zeros(n, bool)
        s.w = weights(s.items, share); s.rng = np.random.default_rng(seed); s.colors = np.array([COLORS[c] for c in NAMES], np.float32) / 255

    def small(s, x):
        n, h = len(x), 128 // s.k
        return x.reshape(n, h, s.k, h, s.k, 4).mean((2, 4)) if s.k > 1 else x  # averaging premultiplied colours is exact

    def tinted(s, i, c):
        """the tinted premultiplied RGBA picture, made once; None where it cannot be"""
        if (i, c) not in s.made:
            t = tint(s.pre[i], s.alpha[i], TO[c]) if (s.items[i]["name"], TO[c]) not in s.held[1] else None
            s.made[i, c] = None if t is None else s.small(np.concatenate([t, s.alpha[i]], -1)[None])[0].astype(np.float16)
        return s.made[i, c]

    def pick(s, B, drop=.1, white=.65):
        """-> numbers, colours, captions"""
        n = len(s.items); ids = s.rng.choice(n, B, p=s.w)
        cs = np.where(s.rng.random(B) < white, 0, s.rng.integers(0, len(NAMES), B)); caps = []
        for j, i in enumerate(ids):
            name = s.items[i]["name"]
            if (name, NAMES[cs[j]]) in s.held[0]: cs[j] = 0
            if s.clear[i] and s.rng.random() < s.tints:
                c = int(s.rng.integers(len(TO))); t = tinted_name(name, TO[c], s.names)
                if t and TO[c] != NAMES[cs[j]] and s.tinted(i, c) is not None:
                    ids[j] = i + (1 + c) * n; caps.append("" if s.rng.random() < drop else decorate(t, NAMES[cs[j]], s.rng)); continue
            caps.append(caption(s.items[i], NAMES[cs[j]], s.rng, drop))
        return ids, cs, caps

    def pictures(s, ids, cs):
        """-> [B,3,S,S] in [-1,1], channels_last"""
        n = len(s.items); x = np.stack([s.x[i] if i < n else s.tinted(i % n, i // n - 1).astype(np.float32) for i in ids])
        return torch.from_numpy((x[..., :3] + (1 - x[..., 3:]) * s.colors[cs][:, None, None]) * 2 - 1).permute(0, 3, 1, 2)


def pretrain(encode, params, width, T, data, seed=1):
    """captions -> 100 principal components of the 32x32 picture and the background colour, from every position that `encode` marks.
    encode(captions) -> states [B,L,width], mask [B,L]. The linear head is thrown away."""
    import time, torch.nn as nn
    torch.manual_seed(seed)
    x = torch.from_numpy(data.x).float(); x = (x[..., :3] + 1 - x[..., 3:]).reshape(len(x), -1) * 2 - 1
    w = torch.from_numpy(data.w).float(); mu = (w[:, None] * x).sum(0); xc = x - mu; K = 100
    _, _, V = torch.svd_lowrank(xc * w.sqrt()[:, None], q=K, niter=4); code = xc @ V; code = code / ((w[:, None] * code ** 2).sum() / K).sqrt()
    code = torch.sign(code) * code.abs().sqrt()  # the smaller components decide what a thing is: bring them nearer to the large ones
    code = code / (w[:, None] * code ** 2).sum(0).mean().sqrt()
    col = torch.from_numpy(data.colors) * 2 - 1; head = nn.Linear(width, K + 3)
    opt = torch.optim.AdamW(list(params) + list(head.parameters()), lr=1e-3, betas=(.9, .99), weight_decay=0.); t0 = last = time.time(); n = 0; acc = []
    while time.time() - t0 < T:
        fr = (time.time() - t0) / T
        for g in opt.param_groups: g["lr"] = 1.5e-3 * min(1, (n + 1) / 30) * min(1, max(.03, (1 - fr) / .6))
        ids, cs, caps = data.pick(48, .05, .6)
        y = torch.cat([code[ids], 3 * col[cs]], 1); y[torch.tensor([c == "" for c in caps])] = 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h, m = encode(caps); o = head(h)
        l = ((o.float() - y[:, None]) ** 2).mean(-1); loss = (l * m).sum() / m.sum()
        opt.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(params, 1.); opt.step(); n += 1; acc.append(loss.item())
        if time.time() - last > 15: print(f"{time.strftime('%H:%M:%S')} {n} code mse {np.mean(acc[-40:]):.4f} (variance about 1)", flush=True); last = time.time()
    print("captions", n * 48, "mse", np.mean(acc[-100:]))
