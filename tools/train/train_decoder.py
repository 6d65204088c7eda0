"""Sharpen the autoencoder's decoder while its encoder, and so every latent, stays as it is: the UNet need not follow.

usage: train_decoder.py SECONDS    reads WORK/vae and WORK/latents.npz (train_unet.py), writes WORK/vae_new; LR, ADV (share of the discriminator), NZ
                                   (largest noise on the latents as a share of their spread), FULL (from this part of the time on whole pictures)
Loss: L1 of the pictures, their gradients and two halvings (train_vae.py), and from a tenth of the time on a small patch discriminator that sees blur.
"""
import math, os, sys, time
os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from common import *
from recolour import TO, tint
from train_vae import pyramid_loss
import fastnorm
from muon import Muon


def discriminator():
    a = nn.LeakyReLU(.2)
    return nn.Sequential(nn.Conv2d(3, 24, 4, 2, 1), a, nn.Conv2d(24, 48, 4, 2, 1), a, nn.Conv2d(48, 64, 3, 1, 1), a, nn.Conv2d(64, 1, 3, 1, 1)).to(memory_format=torch.channels_last)


class Data:
    def __init__(s, seed):
        d = np.load(f"{WORK}/latents.npz"); s.lat, s.idx, s.col, s.tint = d["lat"], d["idx"], d["col"], d["tint"]
        s.pre, s.alpha, s.items = load(); s.n = len(s.items); s.rng = np.random.default_rng(seed); s.held = np.arange(0, s.n, 24)
        s.w = weights(s.items, .4); s.w[s.held] = 0; s.w /= s.w.sum()  # every 24th name is kept for the figure at the end
        s.rest = np.flatnonzero(~np.isin(s.idx, s.held))[s.n - len(s.held):]

    def picture(s, k):
        i, c, t = s.idx[k], NAMES[s.col[k]], s.tint[k]
        return composite(s.pre[i] if t < 0 else tint(s.pre[i], s.alpha[i], TO[t]), s.alpha[i], COLORS[c])

    def batch(s, B, S):
        r, xs, zs = s.rng, [], []
        for _ in range(B):
            k = r.choice(s.n, p=s.w) if r.random() < .7 else r.choice(s.rest); y, x = r.integers(0, (128 - S) // 8 + 1, 2) if S < 128 else (0, 0)
            xs.append(s.picture(k)[8 * y:8 * y + S, 8 * x:8 * x + S]); zs.append(s.lat[k][:, y:y + S // 8, x:x + S // 8].astype(np.float32))
        f = lambda a: a.contiguous(memory_format=torch.channels_last)
        return f(torch.from_numpy(np.stack(xs)).permute(0, 3, 1, 2)), f(torch.from_numpy(np.stack(zs)))


@torch.no_grad()
def figure(m, D):
    x = torch.from_numpy(np.stack([D.picture(k) for k in D.held])).permute(0, 3, 1, 2); z = torch.from_numpy(D.lat[D.held].astype(np.float32)) / m.config.scaling_factor
    with torch.autocast("cpu", dtype=torch.bfloat16): r = torch.cat([m.decode(c.contiguous(memory_format=torch.channels_last)).sample.float() for c in z.split(8)]).clamp(-1, 1)
    e = lambda a: (a[:, :, 1:] - a[:, :, :-1]).abs().mean() + (a[..., 1:] - a[..., :-1]).abs().mean()
    return f"PSNR {(10 * torch.log10(4 / ((r - x) ** 2).mean((1, 2, 3)))).mean():.2f} L1 {(r - x).abs().mean():.4f} edge {e(r) / e(x):.3f}"


def main(T):
    from diffusers import AutoencoderKL
    torch.set_num_threads(1); torch.manual_seed(1); fastnorm.patch()
    m = AutoencoderKL.from_pretrained(f"{WORK}/vae", torch_dtype=torch.float32).to(memory_format=torch.channels_last); m.requires_grad_(False)
    ps = list(m.decoder.parameters()) + list(m.post_quant_conv.parameters()); [p.requires_grad_(True) for p in ps]; ema = [p.data.clone() for p in ps]
    D = Data(1); sf = m.config.scaling_factor; net = discriminator(); print("before", figure(m, D), flush=True)
    opt = Muon([(ps, 1.)]); dopt = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(.5, .99), weight_decay=0., fused=True)
    LR, ADV, NZ, FULL = (float(os.environ.get(k, v)) for k, v in (("LR", "7e-4"), ("ADV", ".25"), ("NZ", ".1"), ("FULL", ".6")))
    n = 0; start = last = saved = time.time(); acc = []
    while True:
        fr = (time.time() - start) / T
        if fr >= 1: break
        lr = LR * min(1, (n + 1) / 50) * max(.01, .5 * (1 + math.cos(math.pi * fr)))
        for g in dopt.param_groups: g["lr"] = lr
        x, z = D.batch(*((12, 64) if fr < FULL else (3, 128)))
        z = (z + NZ * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)) / sf
        with torch.autocast("cpu", dtype=torch.bfloat16): o = m.decode(z).sample
        y = o.detach().float().requires_grad_(); tot, l1 = pyramid_loss(y, x); g, = torch.autograd.grad(tot, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if fr > .1:  # the adversarial gradient gets a fixed share of the other's size
                net.requires_grad_(False); a, = torch.autograd.grad(-net(y).float().mean(), y); g = g + ADV * g.norm() / a.norm().clamp(min=1e-12) * a; net.requires_grad_(True)
            d = F.relu(1 - net(x).float()).mean() + F.relu(1 + net(y.detach()).float()).mean()
        opt.zero_grad(); o.backward(g.to(o.dtype)); torch.nn.utils.clip_grad_norm_(ps, 1.); opt.step(lr)
        dopt.zero_grad(); d.backward(); dopt.step(); n += 1
        torch._foreach_lerp_(ema, [p.data for p in ps], 1 - min(.997, (n + 20) / (n + 40)))
        acc.append([l1.item(), tot.item(), d.item()])
        if time.time() - last > 30:
            print(f"{time.strftime('%H:%M:%S')} fr {fr:.2f} steps {n} l1 {np.mean(acc, 0).round(4)} lr {lr:.2e} cpu {time.process_time():.0f}", flush=True); acc = []; last = time.time()
        if time.time() - saved > 240: out(m, ps, ema); saved = time.time()
    out(m, ps, ema)
    for p, e in zip(ps, ema): p.data.copy_(e)
    print("after", figure(m, D), "steps", n, "wall", time.time() - start, "cpu", time.process_time())


def out(m, ps, ema):
    own = [p.data.clone() for p in ps]
    for p, e in zip(ps, ema): p.data.copy_(e)
    m.save_pretrained(f"{WORK}/vae_new")
    for p, e in zip(ps, own): p.data.copy_(e)


if __name__ == "__main__":
    main(float(sys.argv[1]))
