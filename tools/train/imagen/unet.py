"""The two pixel UNets (DeepFloyd IF's structure) on the frozen text encoder; v-prediction, squared-cosine schedule, learned variance range.

usage: unet.py I|II SECONDS   (resumes from WORK/unetI.pt or unetII.pt). Stage II trains on crops of 64, in the last part on whole pictures.
unet.py --from-assets DIR     writes WORK/unetI.pt, unetII.pt, t5.pt and t5/ from an exported model, to go on from them.
With TEXT=k (stage I) the text encoder learns too, at k times the rate, and WORK/t5.pt gets its averaged weights. BATCH (stage I). SHARE: of the favoured subjects; HOLD: part of the time before the rate falls; TINTS: of tinted pictures.
"""
import shutil, time
from data import *
import torch.nn.functional as F
import fastnorm
from muon import Muon

SHARED = dict(act_fn="gelu", addition_embed_type="text", addition_embed_type_num_heads=4, attention_head_dim=32, cross_attention_dim=128, cross_attention_norm="group_norm", encoder_hid_dim=128,
              encoder_hid_dim_type="text_proj", mid_block_type="UNetMidBlock2DSimpleCrossAttn", norm_eps=1e-5, norm_num_groups=16, out_channels=6, resnet_time_scale_shift="scale_shift", layers_per_block=1)
X, R = "SimpleCrossAttn", "Resnet"
NET = {"I": dict(sample_size=32, in_channels=3, block_out_channels=(64, 96, 128), down_block_types=("ResnetDownsampleBlock2D",) + (X + "DownBlock2D",) * 2,
                 up_block_types=(X + "UpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",)),
       "II": dict(sample_size=128, in_channels=6, block_out_channels=(32, 48, 48), attention_head_dim=16, down_block_types=("ResnetDownsampleBlock2D",) * 2 + (X + "DownBlock2D",),
                  up_block_types=(X + "UpBlock2D",) + ("ResnetUpsampleBlock2D",) * 2, class_embed_type="timestep", only_cross_attention=True, mid_block_only_cross_attention=True,
                  resnet_out_scale_factor=1.4142135623730951, mid_block_scale_factor=1.4142135623730951, resnet_skip_time_act=True, time_embedding_act_fn="gelu", time_embedding_dim=128)}


def make(stage):
    from diffusers import UNet2DConditionModel
    torch.manual_seed(0)
    un = UNet2DConditionModel(**{**SHARED, **NET[stage]})
    with torch.no_grad():  # damped residual branches, unit-gain trunk, text keys and values at full scale
        for n, p in un.named_parameters():
            if n.endswith("conv_out.weight"): p.mul_(.1)
            elif n.endswith(("conv2.weight", "to_out.0.weight")): p.mul_(.1)
            elif p.ndim == 4: torch.nn.init.kaiming_normal_(p, nonlinearity="linear" if "conv1" not in n else "relu")
            elif n.endswith("time_emb_proj.weight"): p.mul_(.5)
            if n.endswith(".bias"): p.zero_()
    return un.to(memory_format=torch.channels_last)


def tables():
    from diffusers import DDPMScheduler
    s = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    ac, b = s.alphas_cumprod.double(), s.betas.double(); acp = torch.cat([torch.ones(1).double(), ac[:-1]])
    pv = (b * (1 - acp) / (1 - ac)).clamp(min=1e-20); pv[0] = pv[1]
    return dict(ac=ac.float(), c0=(acp.sqrt() * b / (1 - ac)).float(), logb=b.log().float(), logv=pv.log().float())


def from_assets(d):
    from safetensors.torch import load_file
    f32 = lambda p: {k: v.float() for k, v in load_file(p).items()}
    os.makedirs(f"{WORK}/t5", exist_ok=True)
    for f in os.listdir(f"{d}/I/tokenizer"): shutil.copy(f"{d}/I/tokenizer/{f}", f"{WORK}/t5/{f}")
    import text
    te = text.make(False); sd = f32(f"{d}/I/text_encoder/model.safetensors"); sd["encoder.embed_tokens.weight"] = sd["shared.weight"]; te.load_state_dict(sd); torch.save(te.state_dict(), f"{WORK}/t5.pt")
    for s in ("I", "II"):
        un = make(s); un.load_state_dict(f32(f"{d}/{s}/unet/diffusion_pytorch_model.safetensors"))
        save(f"{WORK}/unet{s}.pt", un, [p.data.clone() for p in un.parameters()], 1)


def main(stage, T):
    import text
    torch.set_num_threads(1); fastnorm.patch(); seed = int(time.time()) % 100000
    learn = float(os.environ.get("TEXT", "0")) if stage == "I" else 0.
    te = text.make().eval().requires_grad_(learn > 0); un = make(stage); tp = [p for p in te.parameters()] if learn else []; ps = list(un.parameters()) + tp; ema = [p.data.clone() for p in ps]; seen = 0; path = f"{WORK}/unet{stage}.pt"
    if os.path.exists(path):
        q = torch.load(path); un.load_state_dict(q["model"]); ema = q["ema"] + [p.data.clone() for p in tp]; seen = q["seen"]; print("resumed", seen)
    torch.manual_seed(seed); fresh = seen == 0
    print(stage, "unet", sum(p.numel() for p in ps) / 1e6, "text", sum(p.numel() for p in te.parameters()) / 1e6, flush=True)
    D = Data(32 if stage == "I" else 128, float(os.environ.get("SHARE", ".85")), seed, float(os.environ.get("TINTS", "0"))); K = tables()
    opt = Muon([(ps[:len(ps) - len(tp)], 1.)] + ([(tp, learn)] if tp else []), [m.weight for m in te.modules() if isinstance(m, torch.nn.Embedding)]); LR = float(os.environ.get("LR", "1.5e-3"))
    fastnorm.fuse_out(un); t0 = last = saved = time.time(); n = 0; acc = []; bins = np.zeros((5, 2)); FULL, HOLD = (float(os.environ.get(k, v)) for k, v in (("FULL", ".7"), ("HOLD", ".4")))
    while True:
        fr = (time.time() - t0) / T
        if fr >= 1: break
        lr = LR * min(1, (n + 1) / (100 if fresh else 25)) * min(1, max(.01, (1 - fr) / (1 - HOLD)))
        B = int(os.environ.get("BATCH", "32")) if stage == "I" else (12 if fr < FULL else 4)
        ids, cs, caps = D.pick(B); x = D.pictures(ids, cs); kw = {}
        t = ((torch.arange(B) + torch.rand(B)) * (1000 / B)).long().clamp(0, 999)[torch.randperm(B)]
        if stage == "I": t = torch.where(torch.rand(B) < .3, 400 + t * 6 // 10, t)  # the noisy half, where the text decides, more often
        if stage == "II":
            low = F.interpolate(F.avg_pool2d(x, 4), (128, 128), mode="bilinear", align_corners=True); x = x.contiguous(memory_format=torch.channels_last)
            if fr < FULL:
                cut = [tuple(D.rng.integers(0, 9, 2) * 8) for _ in range(B)]
                x, low = (torch.stack([p[:, a:a + 64, b:b + 64] for p, (a, b) in zip(q, cut)]) for q in (x, low))
            lv = (torch.rand(B) * 400).long(); al = K["ac"][lv].view(-1, 1, 1, 1)
            low = al.sqrt() * low + (1 - al).sqrt() * torch.randn_like(low); kw = dict(class_labels=lv)
        a = K["ac"][t].view(-1, 1, 1, 1); e = torch.randn_like(x); xt = a.sqrt() * x + (1 - a).sqrt() * e; v = a.sqrt() * e - (1 - a).sqrt() * x
        inp = (xt if stage == "I" else torch.cat([xt, low], 1)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled(learn > 0): h = text.states(te, caps)
            o = un(inp, t, h, return_dict=False, **kw)[0]
        o = o.float(); ov, fr_v = o[:, :3], (o[:, 3:] + 1) / 2
        l = ((ov - v) ** 2).mean((1, 2, 3))
        # the variance's bound: KL(q(x_{t-1}|x_t,x_0) || p), its mean held fixed
        x0 = (a.sqrt() * xt - (1 - a).sqrt() * ov).detach().clamp(-1, 1); g = lambda k: K[k][t].view(-1, 1, 1, 1)
        lp = fr_v * g("logb") + (1 - fr_v) * g("logv")
        kl = .5 * (-1 + lp - g("logv") + torch.exp(g("logv") - lp) + (g("c0") * (x - x0)) ** 2 * torch.exp(-lp)).mean((1, 2, 3))
        loss = l.mean() + .01 * kl[t > 0].clamp(max=20).mean() if (t > 0).any() else l.mean()
        opt.zero_grad(); loss.backward(); gn = torch.nn.utils.clip_grad_norm_(ps, 1.); n += 1
        if torch.isfinite(gn): opt.step(lr); seen += B
        with torch.no_grad():
            if n % 4 == 0: torch._foreach_lerp_(ema, [p.data for p in ps], 1 - min(.985, (n + 100 * (not fresh)) / (n + 100 * (not fresh) + 40)))
            acc.append([l.mean().item(), kl.mean().item(), gn.item()])
            np.add.at(bins, (t // 200).numpy(), np.stack([l.numpy(), np.ones(B)], 1))
        if time.time() - last > 30:
            m = np.mean(acc, 0); acc = []; last = time.time()
            print(f"{time.strftime('%H:%M:%S')} fr {fr:.2f} steps {n} samples {seen} v-mse {m[0]:.4f} kl {m[1]:.4f} grad {m[2]:.2f} cpu {time.process_time():.0f} by t {np.round(bins[:, 0] / np.maximum(bins[:, 1], 1), 3)}", flush=True); bins[:] = 0
        if time.time() - saved > 120: save(path, un, ema, seen, te, tp); saved = time.time()
    save(path, un, ema, seen, te, tp)


def save(path, un, ema, seen, te=None, tp=()):
    n = len(ema) - len(tp)
    torch.save(dict(model=un.state_dict(), ema=ema[:n], seen=seen), path + ".tmp"); os.replace(path + ".tmp", path)
    if tp:
        sd = te.state_dict(); at = {p.data_ptr(): e for p, e in zip(tp, ema[n:])}
        torch.save({k: at[v.data_ptr()].clone() for k, v in sd.items()}, f"{WORK}/t5.pt.tmp"); os.replace(f"{WORK}/t5.pt.tmp", f"{WORK}/t5.pt")


if __name__ == "__main__":
    from_assets(sys.argv[2]) if sys.argv[1] == "--from-assets" else main(sys.argv[1], float(sys.argv[2]))
