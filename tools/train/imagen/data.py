"""Pictures with captions for every text-conditioned model: premultiplied RGBA at one size, the background chosen per sample."""
import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import numpy as np, torch
from common import *
from captions import caption


class Data:
    def __init__(s, size, share, seed):
        pre, alpha, s.items = load(); n, k = len(pre), 128 // size
        x = np.concatenate([pre, alpha], -1)
        s.x = x.reshape(n, size, k, size, k, 4).mean((2, 4)) if k > 1 else x  # averaging premultiplied colours is exact
        s.w = weights(s.items, share); s.rng = np.random.default_rng(seed); s.colors = np.array([COLORS[c] for c in NAMES], np.float32) / 255

    def pick(s, B, drop=.1, white=.65):
        """-> indices, colours, captions"""
        ids = s.rng.choice(len(s.items), B, p=s.w)
        cs = np.where(s.rng.random(B) < white, 0, s.rng.integers(0, len(NAMES), B))
        return ids, cs, [caption(s.items[i], NAMES[c], s.rng, drop) for i, c in zip(ids, cs)]

    def pictures(s, ids, cs):
        """-> [B,3,S,S] in [-1,1], channels_last"""
        x = s.x[ids]; return torch.from_numpy((x[..., :3] + (1 - x[..., 3:]) * s.colors[cs][:, None, None]) * 2 - 1).permute(0, 3, 1, 2)


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
