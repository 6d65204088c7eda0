"""How near a model's pictures are to the true emoji, with fixed prompts and seeds. usage: measure.py MODEL [GRID.png]

MODEL: a StableDiffusionPipeline directory, or one with I/ and II/ (IF). Prompts: 30 favoured names, 30 others, 10 subjects on a background and 10 in a colour
that training never shows (recolour.py). For each group:
  l1      mean absolute difference to the true picture (-1..1)
  hog     cosine distance of gradient-orientation histograms (cells of 8, 9 orientations, blocks of 2x2)
  found   share of the pictures whose nearest true emoji (hog + colour of 8x8 cells, all names of the set on that background) is the right one; found5: among the five nearest
  edge    mean gradient of the pictures divided by that of the true ones: below 1 is soft
and the denoising error (v-prediction, means over every 6th name, three noises at 10 times each) in the model's own space.
"""
import os, sys, time
os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np, torch
from common import *
from recolour import HELD_BACK, HELD_TINT, tint, tinted_name
from sample import grid


def hog(x):
    """[N,128,128,3] in -1..1 -> [N,D], unit blocks"""
    g = x @ np.float32([.3, .59, .11]); gy = np.zeros_like(g); gx = np.zeros_like(g)
    gy[:, 1:-1] = g[:, 2:] - g[:, :-2]; gx[:, :, 1:-1] = g[:, :, 2:] - g[:, :, :-2]
    m = np.hypot(gx, gy); t = (np.arctan2(gy, gx) / np.pi % 1) * 9; lo = np.floor(t).astype(int); f = t - lo
    h = np.zeros(g.shape + (9,), np.float32)
    for o in range(9): h[..., o] = m * ((lo % 9 == o) * (1 - f) + ((lo + 1) % 9 == o) * f)
    h = h.reshape(len(x), 16, 8, 16, 8, 9).mean((2, 4))
    b = np.concatenate([h[:, :-1, :-1], h[:, 1:, :-1], h[:, :-1, 1:], h[:, 1:, 1:]], -1)
    b = b / np.sqrt((b ** 2).sum(-1, keepdims=True) + 1e-3)
    return b.reshape(len(x), -1)


def feature(x):
    h = hog(x); c = x.reshape(len(x), 8, 16, 8, 16, 3).mean((2, 4)).reshape(len(x), -1)
    return np.concatenate([h / np.linalg.norm(h, axis=1, keepdims=True).clip(1e-6), .05 * c], 1).astype(np.float32)


def edges(x):
    return np.abs(np.diff(x, axis=1)).mean((1, 2, 3)) + np.abs(np.diff(x, axis=2)).mean((1, 2, 3))


def prompts():
    """-> list of (group, prompt, index, background, tint or None)"""
    _, _, items = load(); m = iconic(items); at = {it["name"]: i for i, it in enumerate(items)}
    fav, rest = np.flatnonzero(m), np.flatnonzero(~m)
    out = [("favoured", items[i]["name"], i, "white", None) for i in fav[np.linspace(0, len(fav) - 1, 30).astype(int)]]
    out += [("others", items[i]["name"], i, "white", None) for i in rest[np.linspace(0, len(rest) - 1, 30).astype(int)]]
    out += [("background", f"{n} on a {c} background".replace(" a orange", " an orange"), at[n], c, None) for n, c in HELD_BACK]
    out += [("colour", tinted_name(n, c, at), at[n], "white", c) for n, c in HELD_TINT]
    return out


def draw(model, pr, sd):
    """-> [N,128,128,3] in -1..1, picture after stage I or None"""
    torch.set_num_threads(int(os.environ.get("NT", "1"))); outs, lows = [], []
    if sd:
        from diffusers import StableDiffusionPipeline
        p = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, requires_safety_checker=False, torch_dtype=torch.float32); p.set_progress_bar_config(disable=True)
        for k in range(0, len(pr), 10):
            outs.append(p(pr[k:k + 10], num_inference_steps=20, guidance_scale=float(os.environ.get("G", "3")), height=128, width=128, generator=torch.Generator().manual_seed(1 + k), output_type="np").images * 2 - 1)
        return np.concatenate(outs), None, p
    from diffusers import IFPipeline, IFSuperResolutionPipeline
    import fastnorm; fastnorm.patch()
    one, two = IFPipeline.from_pretrained(f"{model}/I", torch_dtype=torch.float32), IFSuperResolutionPipeline.from_pretrained(f"{model}/II", torch_dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for p in (one, two): p.set_progress_bar_config(disable=True); p.unet.to(memory_format=torch.channels_last)
        for k in range(0, len(pr), 10):
            g = torch.Generator().manual_seed(1 + k); e, ne = one.encode_prompt(pr[k:k + 10])
            low = one(prompt_embeds=e, negative_prompt_embeds=ne, guidance_scale=float(os.environ.get("G", "2")), num_inference_steps=int(os.environ.get("STEPS", "30")), generator=g, output_type="pt").images
            hi = two(prompt_embeds=e, negative_prompt_embeds=ne, image=low, guidance_scale=1.5, num_inference_steps=12, noise_level=100, generator=g, output_type="pt").images
            f = lambda t: t.float().clamp(-1, 1).permute(0, 2, 3, 1).numpy(); outs.append(f(hi)); lows.append(f(low))
    return np.concatenate(outs), np.concatenate(lows), (one, two)


@torch.no_grad()
def denoising(p, sd, pre, alpha, items):
    """mean of (v - prediction)^2 over 10 times x 3 noises, every 6th name"""
    ids = np.arange(0, len(items), 6); x = torch.from_numpy(np.stack([composite(pre[i], alpha[i], COLORS["white"]) for i in ids])).permute(0, 3, 1, 2).contiguous()
    caps = [items[i]["name"] for i in ids]; g = torch.Generator().manual_seed(5); res = []
    pipe = p if sd else p[0]
    if sd:
        x = torch.cat([p.vae.encode(c).latent_dist.mean * p.vae.config.scaling_factor for c in x.split(16)])
        h = p.text_encoder(p.tokenizer(caps, padding="max_length", max_length=77, return_tensors="pt").input_ids)[0]
    else:
        x = torch.nn.functional.avg_pool2d(x, 4); h, _ = pipe.encode_prompt(caps, do_classifier_free_guidance=False); h = h.float()
    ac = pipe.scheduler.alphas_cumprod
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not sd):
        for t in range(50, 1000, 100):
            for _ in range(3):
                e = torch.randn(x.shape, generator=g); a = ac[t]; v = a.sqrt() * e - (1 - a).sqrt() * x; xt = a.sqrt() * x + (1 - a).sqrt() * e
                o = torch.cat([pipe.unet(c, t, hh, return_dict=False)[0].float()[:, :x.shape[1]] for c, hh in zip(xt.split(64), h.split(64))]); res.append(((o - v) ** 2).mean().item())
    r = np.array(res).reshape(10, 3).mean(1)
    return r.mean(), np.round(r, 3)


if __name__ == "__main__":
    model = sys.argv[1]; sd = os.path.exists(f"{model}/unet"); t0 = time.time()
    pre, alpha, items = load(); pr = prompts()
    x, low, p = draw(model, [q[1] for q in pr], sd); ts = time.time() - t0
    true = np.stack([composite(pre[i] if c is None else tint(pre[i], alpha[i], c), alpha[i], COLORS[b]) for _, _, i, b, c in pr])
    fx, ft = feature(x), feature(true); bank = {}; rank = []
    for k, (_, _, i, b, c) in enumerate(pr):
        if b not in bank: bank[b] = feature(np.stack([composite(pre[j], alpha[j], COLORS[b]) for j in range(len(items))]))
        f = bank[b]
        if c is not None: f = f.copy(); f[i] = ft[k]
        d = ((f - fx[k]) ** 2).sum(1); rank.append((d < d[i]).sum())
    rank = np.array(rank); hx, ht = hog(x), hog(true)
    hd = 1 - (hx * ht).sum(1) / (np.linalg.norm(hx, axis=1) * np.linalg.norm(ht, axis=1)).clip(1e-6); l1 = np.abs(x - true).mean((1, 2, 3)); ed = (edges(x), edges(true))
    gs = np.array([q[0] for q in pr])
    for g in ("favoured", "others", "background", "colour", "all"):
        m = gs == g if g != "all" else gs != ""
        print(f"{g:10s} n {m.sum():2d} l1 {l1[m].mean():.4f} hog {hd[m].mean():.4f} found {(rank[m] == 0).mean():.2f} found5 {(rank[m] < 5).mean():.2f} edge {ed[0][m].sum() / ed[1][m].sum():.3f}")
    if not os.environ.get("NODENOISE"): print("denoising v-mse", *denoising(p, sd, pre, alpha, items))
    print(f"seconds {ts:.0f}")
    if len(sys.argv) > 2:
        from PIL import Image
        im = lambda a: [Image.fromarray(((q + 1) * 127.5).clip(0, 255).astype(np.uint8)).resize((128, 128), 0) for q in a]
        n = [q[1] for q in pr]; rows = []
        for k in range(0, len(n), 10):
            rows += im(true[k:k + 10]) + im(x[k:k + 10])
        grid(rows, [s for k in range(0, len(n), 10) for s in n[k:k + 10] + [f"rank {r}" for r in rank[k:k + 10]]], 10).save(sys.argv[2])
