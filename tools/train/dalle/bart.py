"""DALL-E mini's text-to-token transformer (NormFormer + GLU), from its published description; names as in min-dalle.

usage: bart.py tokens            encode the pictures with the VQGAN (WORK/tokens.npz)
       bart.py pretrain SECONDS  the encoder alone, on the pictures' principal components
       bart.py train SECONDS     (resumes from WORK/bart.pt)
"""
import os, sys, time
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../imagen"))
from data import *
import torch.nn as nn, torch.nn.functional as F

GRID, NV, LEN = 16, 2048, 64
W, HEADS, GLU_W, ENC, DEC, CODES = 256, 8, 448, 1, 4, 512
BOS, PAD, EOS, UNK = 0, 1, 2, 3
TOK = f"{WORK}/bart_tok"


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, decoders, processors, trainers
    if not os.path.exists(f"{TOK}/vocab.json"):
        os.makedirs(TOK, exist_ok=True); items = load()[2]; rng = np.random.default_rng(0); corpus = []
        for it in items:
            corpus += [" " + it["name"]] * 4 + [" " + k for k in it["keywords"]] + [" " + caption(it, NAMES[rng.integers(len(NAMES))], rng, 0) for _ in range(2)]
        t = Tokenizer(models.BPE()); t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=NV - 1, min_frequency=2, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
        m = json.loads(t.to_str())["model"]; v = m["vocab"]; v["<mask>"] = len(v)
        json.dump(v, open(f"{TOK}/vocab.json", "w"), ensure_ascii=False)
        open(f"{TOK}/merges.txt", "w").write("#version: 0.2\n" + "".join((x if isinstance(x, str) else " ".join(x)) + "\n" for x in m["merges"]))
    v = json.load(open(f"{TOK}/vocab.json")); mg = [tuple(l.split(" ")) for l in open(f"{TOK}/merges.txt").read().split("\n")[1:] if l]
    t = Tokenizer(models.BPE(vocab=v, merges=mg, unk_token="<unk>")); t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return t


def ids_of(caps, t=[]):
    """min-dalle's way: lower case, a space before the first word, <s> words </s>, padded with <pad>; `` is the unconditional row"""
    if not t: t.append(tokenizer())
    o = np.full((len(caps), LEN), PAD, np.int64)
    for j, c in enumerate(caps):
        q = [BOS] + (t[0].encode(" " + c.lower().strip()).ids[:LEN - 2] if c else []) + [EOS]; o[j, :len(q)] = q
    return torch.from_numpy(o)


class LN(nn.LayerNorm):
    """before a dense layer: bias only (the weight stays 1 and is written as such)"""
    def __init__(s, n, scale=False):
        super().__init__(n, eps=1e-5); s.weight.requires_grad_(scale)


class Attn(nn.Module):
    def __init__(s):
        super().__init__(); s.k_proj, s.v_proj, s.q_proj, s.out_proj = (nn.Linear(W, W, bias=False) for _ in range(4))

    def forward(s, x, m=None, mask=None, causal=False, cache=None):
        f = lambda y: y.view(y.shape[0], y.shape[1], HEADS, -1).transpose(1, 2)
        q, k, v = f(s.q_proj(x)), f(s.k_proj(x if m is None else m)), f(s.v_proj(x if m is None else m))
        if cache is not None:
            k, v = (torch.cat([c, y], 2) for c, y in zip(cache, (k, v))) if cache else (k, v)
            cache[:] = [k, v]
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return s.out_proj(o.transpose(1, 2).reshape(x.shape))


class GLU(nn.Module):
    def __init__(s):
        super().__init__(); s.ln0, s.ln1 = LN(W), LN(GLU_W); s.fc0, s.fc1, s.fc2 = nn.Linear(W, GLU_W, bias=False), nn.Linear(W, GLU_W, bias=False), nn.Linear(GLU_W, W, bias=False)

    def forward(s, x):
        z = s.ln0(x); return s.fc2(s.ln1(F.gelu(s.fc0(z)) * s.fc1(z)))


class Layer(nn.Module):
    def __init__(s, dec):
        super().__init__()
        s.pre_self_attn_layer_norm, s.self_attn, s.self_attn_layer_norm = LN(W), Attn(), LN(W, True)
        if dec: s.pre_encoder_attn_layer_norm, s.encoder_attn, s.encoder_attn_layer_norm = LN(W), Attn(), LN(W, True)
        s.glu = GLU()

    def forward(s, x, mask=None, m=None, mmask=None, causal=False, cache=None):
        x = x + s.self_attn_layer_norm(s.self_attn(s.pre_self_attn_layer_norm(x), mask=mask, causal=causal, cache=cache))
        if m is not None: x = x + s.encoder_attn_layer_norm(s.encoder_attn(s.pre_encoder_attn_layer_norm(x), m, mmask))
        return x + s.glu(x)


class Stack(nn.Module):
    def __init__(s, vocab, places, layers, dec):
        super().__init__()
        s.embed_tokens, s.embed_positions = nn.Embedding(vocab, W), nn.Embedding(places, W)
        s.layers = nn.ModuleList([Layer(dec) for _ in range(layers)]); s.layernorm_embedding, s.final_ln = LN(W, True), LN(W)
        if dec: s.lm_head = nn.Linear(W, vocab, bias=False)

    def embed(s, ids, p0=0):
        return s.layernorm_embedding(s.embed_tokens(ids) + s.embed_positions.weight[p0:p0 + ids.shape[1]])


class Bart(nn.Module):
    def __init__(s):
        super().__init__()
        s.encoder, s.decoder = Stack(NV, LEN, ENC, False), Stack(CODES + 1, GRID * GRID, DEC, True)
        for n, p in s.named_parameters():
            if n.endswith("embed_positions.weight"): nn.init.normal_(p, std=.3 if n.startswith("enc") else 1.)
            elif n.endswith("lm_head.weight"): nn.init.normal_(p, std=.02)
            elif p.ndim == 2 and "embed" not in n: nn.init.normal_(p, std=p.shape[1] ** -.5)
            elif n.endswith("_attn_layer_norm.weight") and p.requires_grad: nn.init.constant_(p, .3)

    def encode(s, ids):
        mask = (ids != PAD)[:, None, None]; x = s.encoder.embed(ids)
        for l in s.encoder.layers: x = l(x, mask)
        return s.encoder.final_ln(x), mask

    def forward(s, ids, z):
        m, mask = s.encode(ids); d = s.decoder
        x = d.embed(torch.cat([torch.full_like(z[:, :1], CODES), z[:, :-1]], 1))
        for l in d.layers: x = l(x, None, m, mask, True)
        return d.lm_head(d.final_ln(x))

    @torch.no_grad()
    def sample(s, caps, scale, top_k, temp, gen):
        n = len(caps); m, mask = s.encode(ids_of([""] * n + list(caps))); d = s.decoder; t = torch.full((2 * n, 1), CODES); cache = [[] for _ in d.layers]; out = []
        for i in range(GRID * GRID):
            x = d.embed(t, i)
            for l, c in zip(d.layers, cache): x = l(x, None, m, mask, cache=c)
            u, c = d.lm_head(d.final_ln(x))[:, 0, :CODES].float().chunk(2); g = u + scale * (c - u)
            g = g.masked_fill(g < g.topk(top_k).values[:, -1:], -torch.inf)
            k = torch.multinomial(torch.softmax(g / temp, -1), 1, generator=gen); out.append(k); t = k.repeat(2, 1)
        return torch.cat(out, 1)


def make_tokens():
    import vqgan
    torch.set_num_threads(1); m = vqgan.load_ema(); D = Data(128, .85, 0); ico = iconic(D.items); rng = np.random.default_rng(5)
    jobs = [(i, c) for i in range(len(ico)) for c in (range(len(NAMES)) if ico[i] else [0] + list(rng.permutation(len(NAMES) - 1)[:2] + 1))]; out = []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for k in range(0, len(jobs), 16):
            a, b = np.array(jobs[k:k + 16]).T
            out.append(m.codes(m.enc(D.pictures(a, b).contiguous(memory_format=torch.channels_last)).float())[1].view(len(a), -1))
    np.savez(f"{WORK}/tokens.npz", z=torch.cat(out).numpy().astype(np.int16), jobs=np.array(jobs)); print(len(jobs), "pictures", len(np.unique(torch.cat(out))), "codes used")


def main(T):
    torch.set_num_threads(1); seed = int(time.time()) % 100000; torch.manual_seed(0); m = Bart(); path = f"{WORK}/bart.pt"; seen = 0
    ps = [p for p in m.parameters() if p.requires_grad]; q = None
    if os.path.exists(path): q = torch.load(path); m.load_state_dict(q["model"]); seen = q["seen"]; print("resumed", seen)
    else: m.encoder.load_state_dict(torch.load(f"{WORK}/bart_enc.pt"))
    ema = q["ema"] if q else [p.data.clone() for p in ps]; torch.manual_seed(seed); fresh = seen == 0
    print("parameters", sum(p.numel() for p in m.parameters()) / 1e6, flush=True)
    f = np.load(f"{WORK}/tokens.npz"); z, jobs = torch.from_numpy(f["z"].astype(np.int64)), f["jobs"]; items = json.load(open(f"{WORK}/emoji.json"))
    w = weights(items, float(os.environ.get("SHARE", ".88"))); by = [[] for _ in items]; rng = np.random.default_rng(seed)
    for k, (i, _) in enumerate(jobs): by[i].append(k)
    en = list(m.encoder.parameters()); de = [p for p in m.decoder.parameters() if p.requires_grad]
    opt = torch.optim.AdamW([dict(params=de, k=1.), dict(params=[p for p in en if p.requires_grad], k=.1)], lr=1e-3, betas=(.9, .98), weight_decay=.01, fused=True)
    LR = float(os.environ.get("LR", "1.5e-3")); B = int(os.environ.get("BATCH", "24")); t0 = last = saved = time.time(); n = 0; acc = []
    while True:
        fr = (time.time() - t0) / T
        if fr >= 1: break
        for g in opt.param_groups: g["lr"] = LR * g["k"] * min(1, (n + 1) / (150 if fresh else 30)) * min(1, max(.02, (1 - fr) / .6))
        ks = [by[i][0] if rng.random() < .5 else by[i][rng.integers(len(by[i]))] for i in rng.choice(len(items), B, p=w)]
        caps = [caption(items[jobs[k, 0]], NAMES[jobs[k, 1]], rng, .12) for k in ks]; y = z[ks]
        with torch.autocast("cpu", dtype=torch.bfloat16): o = m(ids_of(caps), y)
        loss = F.cross_entropy(o.reshape(-1, o.shape[-1]).float(), y.reshape(-1), label_smoothing=0.)
        opt.zero_grad(); loss.backward(); gn = torch.nn.utils.clip_grad_norm_(ps, 1.); opt.step(); n += 1; seen += B; acc.append([loss.item(), gn.item()])
        with torch.no_grad():
            if n % 4 == 0: torch._foreach_lerp_(ema, [p.data for p in ps], 1 - min(.985, n / (n + 40)))
        if time.time() - last > 30: print(f"{time.strftime('%H:%M:%S')} fr {fr:.2f} steps {n} samples {seen} nats per token {np.mean(acc, 0)[0]:.4f} grad {np.mean(acc, 0)[1]:.2f}", flush=True); acc = []; last = time.time()
        if time.time() - saved > 120: save(path, m, ema, seen); saved = time.time()
    save(path, m, ema, seen)


def save(path, m, ema, seen):
    torch.save(dict(model=m.state_dict(), ema=ema, seen=seen), path + ".tmp"); os.replace(path + ".tmp", path)


def load_ema():
    m = Bart(); q = torch.load(f"{WORK}/bart.pt"); m.load_state_dict(q["model"])
    for p, e in zip([p for p in m.parameters() if p.requires_grad], q["ema"]): p.data.copy_(e)
    return m.eval().requires_grad_(False)


if __name__ == "__main__":
    if sys.argv[1] == "tokens": make_tokens()
    elif sys.argv[1] == "pretrain":
        torch.set_num_threads(1); torch.manual_seed(0); m = Bart(); D = Data(32, .6, 1)
        def enc(caps):
            i = ids_of(caps); return m.encode(i)[0], (i != PAD).float()
        pretrain(enc, [p for p in m.encoder.parameters() if p.requires_grad], W, float(sys.argv[2]), D)
        torch.save(m.encoder.state_dict(), f"{WORK}/bart_enc.pt")
    else: main(float(sys.argv[2]))
