"""VQGAN: the decoder has taming's structure and key names (what is released as the detokenizer); the encoder is only for training.

usage: vqgan.py SECONDS   (resumes from WORK/vqgan.pt; crops of 64 first, whole pictures in the last part)
Losses: L1 on the image, its gradients and a pyramid, some MSE, commitment; the codebook follows averages of the vectors given to it, and
unused codes are moved onto vectors of the batch.
"""
import os, sys, time
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from common import *
from fastnorm import norm

CFG = dict(ch=64, out_ch=3, in_channels=3, ch_mult=[1, 1, 2, 2], num_res_blocks=0, attn_resolutions=[16], resolution=128, z_channels=64,
           n_embed=512, embed_dim=32, double_z=False, dropout=0.0, resamp_with_conv=True)
GN = lambda c: nn.GroupNorm(32, c, eps=1e-6)
conv = lambda a, b: nn.Conv2d(a, b, 3, padding=1)
if os.environ.get("PLAIN"):  # PyTorch's own operations, for checks
    norm = lambda x, g, act=0: F.silu(g(x)) if act else g(x)


class Res(nn.Module):
    def __init__(s, a, b):
        super().__init__()
        s.norm1, s.conv1, s.norm2, s.conv2 = GN(a), conv(a, b), GN(b), conv(b, b)
        if a != b: s.nin_shortcut = nn.Conv2d(a, b, 1)

    def forward(s, x):
        h = s.conv2(norm(s.conv1(norm(x, s.norm1, 1)), s.norm2, 1))
        return h + (s.nin_shortcut(x) if hasattr(s, "nin_shortcut") else x)


class Attn(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.norm = GN(c); s.q, s.k, s.v, s.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(s, x):
        h = norm(x, s.norm); n, c, a, b = x.shape
        q, k, v = (f(h).permute(0, 2, 3, 1).reshape(n, 1, a * b, c) for f in (s.q, s.k, s.v))
        o = F.scaled_dot_product_attention(q, k, v).reshape(n, a, b, c).permute(0, 3, 1, 2)
        return x + s.proj_out(o)


class Up(nn.Module):
    def __init__(s, c):
        super().__init__(); s.conv = conv(c, c)

    def forward(s, x): return s.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Decoder(nn.Module):
    def __init__(s, c=CFG):
        super().__init__()
        n = len(c["ch_mult"]); w = c["ch"] * c["ch_mult"][-1]; res = c["resolution"] // 2 ** (n - 1)
        s.conv_in = conv(c["z_channels"], w)
        s.mid = nn.Module(); s.mid.block_1, s.mid.attn_1, s.mid.block_2 = Res(w, w), Attn(w), Res(w, w)
        ups = []
        for i in reversed(range(n)):
            u = nn.Module(); u.block, u.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(c["num_res_blocks"] + 1):
                u.block.append(Res(w, c["ch"] * c["ch_mult"][i])); w = c["ch"] * c["ch_mult"][i]
                if res in c["attn_resolutions"]: u.attn.append(Attn(w))
            if i: u.upsample = Up(w); res *= 2
            ups.insert(0, u)
        s.up = nn.ModuleList(ups); s.norm_out = GN(w); s.conv_out = conv(w, c["out_ch"])

    def forward(s, z):
        h = s.mid.block_2(s.mid.attn_1(s.mid.block_1(s.conv_in(z))))
        for u in reversed(s.up):
            for j, b in enumerate(u.block):
                h = b(h)
                if len(u.attn): h = u.attn[j](h)
            if hasattr(u, "upsample"): h = u.upsample(h)
        return s.conv_out(norm(h, s.norm_out, 1))


class Encoder(nn.Module):
    def __init__(s, w=(32, 64, 96, 128), e=CFG["embed_dim"]):
        super().__init__()
        s.inp = conv(3, w[0]); s.res = nn.ModuleList([Res(a, a) for a in w]); s.down = nn.ModuleList([nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(w, w[1:])])
        s.attn, s.last, s.norm, s.out = Attn(w[-1]), Res(w[-1], w[-1]), GN(w[-1]), nn.Conv2d(w[-1], e, 1)

    def forward(s, x):
        h = s.inp(x)
        for i, r in enumerate(s.res):
            h = r(h)
            if i < len(s.down): h = s.down[i](h)
        return s.out(norm(s.last(s.attn(h)), s.norm, 1))


class VQ(nn.Module):
    def __init__(s):
        super().__init__()
        s.enc, s.decoder = Encoder(), Decoder()
        s.embedding = nn.Embedding(CFG["n_embed"], CFG["embed_dim"]); s.embedding.weight.requires_grad_(False)
        s.post_quant_conv = nn.Conv2d(CFG["embed_dim"], CFG["z_channels"], 1)
        s.register_buffer("cnt", torch.ones(CFG["n_embed"])); s.register_buffer("tot", torch.zeros(CFG["n_embed"], CFG["embed_dim"]))
        with torch.no_grad():  # damped residual branches, unit-gain trunk
            for n, p in s.named_parameters():
                if n.endswith(("conv2.weight", "proj_out.weight")): p.mul_(.1)
                elif p.ndim == 4 and "conv1" not in n: nn.init.kaiming_normal_(p, nonlinearity="linear")
                if n.endswith("bias"): p.zero_()

    def codes(s, z):
        f = z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1]); e = s.embedding.weight
        return f, ((e * e).sum(1) - 2 * f @ e.t()).argmin(1)

    def decode(s, ids):  # [N,256] -> [N,3,128,128] in about [0,1]
        h = int(ids.shape[1] ** .5)
        return s.decoder(s.post_quant_conv(s.embedding(ids).view(len(ids), h, h, -1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)))


def loss_of(a, b):
    l1 = (a - b).abs().mean(); tot = l1 + ((a - b) ** 2).mean() * 2
    for k in range(3):
        d = a - b
        tot = tot + .5 * ((d[:, :, 1:] - d[:, :, :-1]).abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean())
        if k < 2:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2); tot = tot + .5 * (a - b).abs().mean()
    return tot, l1


def main(T):
    torch.set_num_threads(1); torch.manual_seed(int(time.time()) % 1000)
    m = VQ().to(memory_format=torch.channels_last); ps = [p for p in m.parameters() if p.requires_grad]; ema = [p.data.clone() for p in ps]; seen = 0
    if os.path.exists(f"{WORK}/vqgan.pt"):
        q = torch.load(f"{WORK}/vqgan.pt"); m.load_state_dict(q["model"]); ema = q["ema"]; seen = q["seen"]; print("resumed", seen)
    print("decoder", sum(p.numel() for n, p in m.named_parameters() if not n.startswith("enc.")) / 1e6, flush=True)
    opt = torch.optim.AdamW(ps, lr=1e-3, betas=(.9, .98), weight_decay=0., fused=True); LR = float(os.environ.get("LR", "1.5e-3"))
    rgba = np.load(f"{WORK}/emoji.npz")["rgba"]; items = json.load(open(f"{WORK}/emoji.json")); w = weights(items, .7)
    rng = np.random.default_rng(int(time.time())); t0 = last = save_t = time.time(); n = 0; acc = []; first = seen == 0
    FULL = float(os.environ.get("FULL", ".55")); used = torch.zeros(CFG["n_embed"])
    while True:
        fr = (time.time() - t0) / T
        if fr >= 1: break
        S, B = (64, 12) if fr < FULL else (128, 4)
        for g in opt.param_groups: g["lr"] = LR * min(1, (n + 1) / 50) * min(1, max(.02, (1 - fr) / .7))
        x = np.empty((B, S, S, 3), np.float32)
        for k, i in enumerate(rng.choice(len(w), B, p=w)):
            u = rng.random(); c = COLORS["white"] if u < .5 else COLORS[NAMES[rng.integers(len(NAMES))]] if u < .95 else rng.integers(0, 256, 3)
            y0, x0 = rng.integers(0, (128 - S) // 8 + 1, 2) * 8
            r = rgba[i, y0:y0 + S, x0:x0 + S].astype(np.float32) / 255; a = r[..., 3:]
            x[k] = r[..., :3] * a + (1 - a) * np.asarray(c, np.float32) / 255
        x = torch.from_numpy(x).permute(0, 3, 1, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = m.enc(x * 2 - 1).float()
            f, ids = m.codes(z.detach())
            if first and n == 0:
                m.embedding.weight.copy_(f[torch.randint(len(f), (CFG["n_embed"],))]); m.tot.copy_(m.embedding.weight); _, ids = m.codes(z.detach())
            q = m.embedding(ids).view(B, S // 8, S // 8, -1).permute(0, 3, 1, 2)
            with torch.no_grad():
                c1 = torch.bincount(ids, minlength=CFG["n_embed"]).float(); t1 = torch.zeros_like(m.tot).index_add_(0, ids, f); used += c1
                if fr < .9:
                    m.cnt.lerp_(c1, .02); m.tot.lerp_(t1, .02); m.embedding.weight.copy_(m.tot / m.cnt.clamp(min=1e-3)[:, None])
                if fr < .7 and n % 100 == 99:
                    dead = (used < 3).nonzero()[:, 0]; used.zero_(); r = f[torch.randint(len(f), (len(dead),))]
                    m.embedding.weight[dead] = r; m.tot[dead] = r * .5; m.cnt[dead] = .5
            commit = ((z - q) ** 2).mean()
            zq = z + (q - z).detach()
            o = m.decoder(m.post_quant_conv(zq))
        tot, l1 = loss_of(o.float() * 2 - 1, x * 2 - 1)
        loss = tot + .25 * commit
        opt.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(ps, 1.); opt.step(); n += 1; seen += B * (S / 128) ** 2
        with torch.no_grad():
            if n % 4 == 0: torch._foreach_lerp_(ema, [p.data for p in ps], 1 - min(.99, n / (n + 40)))
        acc.append([l1.item(), tot.item(), commit.item(), ((o.float() - x) ** 2).mean().item()])
        if time.time() - last > 30:
            a = np.mean(acc, 0); acc = []; last = time.time(); p = m.cnt / m.cnt.sum()
            print(f"{time.strftime('%H:%M:%S')} fr {fr:.2f} steps {n} pictures {seen:.0f} S{S} l1 {a[0]:.4f} tot {a[1]:.4f} commit {a[2]:.4f} psnr {-10 * np.log10(a[3]):.2f} perplexity {(-(p * (p + 1e-9).log()).sum()).exp():.0f}", flush=True)
        if time.time() - save_t > 120:
            torch.save(dict(model=m.state_dict(), ema=ema, seen=seen), f"{WORK}/vqgan.tmp"); os.replace(f"{WORK}/vqgan.tmp", f"{WORK}/vqgan.pt"); save_t = time.time()
    torch.save(dict(model=m.state_dict(), ema=ema, seen=seen), f"{WORK}/vqgan.pt")


def load_ema():
    m = VQ(); q = torch.load(f"{WORK}/vqgan.pt"); m.load_state_dict(q["model"])
    for p, e in zip([p for p in m.parameters() if p.requires_grad], q["ema"]): p.data.copy_(e)
    return m.to(memory_format=torch.channels_last).eval().requires_grad_(False)


if __name__ == "__main__":
    main(float(sys.argv[1]))
