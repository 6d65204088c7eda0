"""Muon (momentum, then the nearest orthogonal matrix by a Newton-Schulz iteration: K. Jordan 2024) for matrices and convolutions, AdamW for all else.

Steps of matrices have a root mean square of 0.2 times the rate (J. Liu et al. 2025, "Muon is scalable for LLM training"), so one rate serves both.
"""
import torch


def orthogonal(g, steps=5):
    """[K,M,N], M <= N -> about the U V^T of every matrix, in bfloat16"""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16(); x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(steps):
        s = x @ x.transpose(1, 2); x = a * x + (b * s + c * (s @ s)) @ x
    return x


class Muon:
    """groups: [(parameters, factor on the rate)]; plain: matrices that are AdamW's all the same, such as embeddings"""

    def __init__(s, groups, plain=(), momentum=.95):
        ids = {id(p) for p in plain}; s.momentum = momentum; s.sets = {}; rest = []
        for k, (ps, f) in enumerate(groups):
            own = [p for p in ps if p.ndim < 2 or id(p) in ids]; rest.append(dict(params=own, k=f))
            for p in ps:
                if p.ndim >= 2 and id(p) not in ids:
                    m, n = p.shape[0], p.numel() // p.shape[0]; s.sets.setdefault((f, min(m, n), max(m, n)), []).append(p)
        s.m = {id(p): torch.zeros_like(p) for ps in s.sets.values() for p in ps}
        s.adam = torch.optim.AdamW([g for g in rest if g["params"]], lr=1e-3, betas=(.9, .99), weight_decay=0., fused=True)

    @torch.no_grad()
    def step(s, lr):
        for g in s.adam.param_groups: g["lr"] = lr * g["k"]
        s.adam.step()
        for (f, m, n), ps in s.sets.items():
            ps = [p for p in ps if p.grad is not None]
            if not ps: continue
            us = []
            for p in ps:
                b = s.m[id(p)]; b.lerp_(p.grad, 1 - s.momentum); u = p.grad.lerp(b, s.momentum).reshape(p.shape[0], -1)
                us.append(u if u.shape[0] <= u.shape[1] else u.t())
            o = orthogonal(torch.stack(us)).float() * (-.2 * n ** .5 * lr * f)
            for p, u in zip(ps, o): p.add_((u if p.shape[0] * p.shape[0] <= p.numel() else u.t()).reshape(p.shape))

    def zero_grad(s):
        s.adam.zero_grad()
        for ps in s.sets.values():
            for p in ps: p.grad = None
