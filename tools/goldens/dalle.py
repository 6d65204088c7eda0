"""Writes tests/goldens/dalle/: tiny DALL-E minis with random weights, and what they draw in PyTorch.

The models are written here from their published description (BART with NormFormer blocks, https://arxiv.org/abs/2110.09456, GLU,
https://arxiv.org/abs/2002.05202, super conditioning; VQGAN, https://arxiv.org/abs/2012.09841), with the names of the published files:
dalle-mini's flax tree, min-dalle's state dicts, taming-transformers' VQGAN. Everything is float32; the generator recomputes its
whole prefix for every token, so that no cache can be wrong in the same way twice.

usage: python tools/goldens/dalle.py [CASE...]
"""
import json
import math
import shutil
import sys

import msgpack
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import BartTokenizerFast

from bpe import REPOSITORY

ROOT = REPOSITORY / "tests" / "goldens" / "dalle"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
MERGES = ["Ġ a", "e d", "r ed", "p p", "l e", "pp le", "Ġa pple", "Ġ red", "i n", "o n", "Ġ c", "Ġc a", "Ġca t", "h e"]


def tokenizer_files(folder, bytes_of=range(33, 127)):
    vocab = SPECIAL + ["Ġ"] + [chr(b) for b in bytes_of] + [merge.replace(" ", "") for merge in MERGES] + ["<mask>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(merge + "\n" for merge in MERGES), encoding="utf-8")
    return vocab


def min_dalle_ids(vocab, text, length):
    """Lower case, ASCII, words at spaces, each behind a Ġ; always the pair of the lowest rank is joined."""
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES)}
    ids = []
    for word in text.lower().encode("ascii", "ignore").decode().split(" "):
        pieces = ["Ġ"] + list(word) if word else []
        while len(pieces) > 1:
            rank, at = min((ranks.get(pair, math.inf), at) for at, pair in enumerate(zip(pieces, pieces[1:])))
            if rank == math.inf:
                break
            pieces[at:at + 2] = ["".join(pieces[at:at + 2])]
        ids += [vocab.index(piece) if piece in vocab else 3 for piece in pieces]
    return [0] + ids[:length - 2] + [2]


class Weights(dict):
    """Random tensors made when they are first asked for."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def get_or_make(self, name, *shape):
        if name not in self:
            x = torch.randn(shape, generator=self.generator)
            if len(shape) > 1:
                x = x if "embed" in name else x / math.prod(shape[1:]) ** 0.5
            else:
                x = 0.3 * x + (1.0 if name.endswith("weight") else 0.0)
            # The files hold halves; so do the numbers of the reference.
            self[name] = x.half().float()
        return self[name]


class Bart:
    def __init__(self, c, seed):
        self.c, self.parts = c, {"encoder": Weights(seed), "decoder": Weights(seed + 1)}
        self.taps = {}

    def linear(self, part, name, x, out, bias=None):
        w = self.parts[part]
        bias = self.c["use_bias"] if bias is None else bias
        return F.linear(x, w.get_or_make(name + ".weight", out, x.shape[-1]), w.get_or_make(name + ".bias", out) if bias else None)

    def norm(self, part, name, x, scale=True):
        w, n = self.parts[part], x.shape[-1]
        scale = w.get_or_make(name + ".weight", n) if scale or self.c["force_ln_scale"] else None
        return F.layer_norm(x, (n,), scale, w.get_or_make(name + ".bias", n), 1e-5)

    def attention(self, part, name, x, other, mask):
        heads = self.c[part + "_attention_heads"]
        split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)
        width = self.c["d_model"]
        q, k, v = (split(self.linear(part, f"{name}.{p}_proj", y, width)) for p, y in (("q", x), ("k", other), ("v", other)))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + torch.where(mask, 0.0, -1e12)
        return self.linear(part, f"{name}.out_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2), width)

    def feed_forward(self, part, name, x):
        c, act = self.c, {"gelu": F.gelu, "quick_gelu": lambda y: y * torch.sigmoid(1.702 * y)}[self.c["activation_function"]]
        inner = c[part + "_ffn_dim"]
        name += ".glu" if c["use_glu"] else ".ffn"
        z = self.norm(part, name + ".ln0", x, False)
        y = act(self.linear(part, name + ".fc0", z, inner))
        if c["use_glu"]:
            y = y * self.linear(part, name + ".fc1", z, inner)
        return self.linear(part, name + (".fc2" if c["use_glu"] else ".fc1"), self.norm(part, name + ".ln1", y, False), c["d_model"])

    def embed(self, part, ids, rows, places):
        w, width = self.parts[part], self.c["d_model"]
        x = w.get_or_make("embed_tokens.weight", rows, width)[ids] + w.get_or_make("embed_positions.weight", places, width)[:ids.shape[1]]
        return self.norm(part, "layernorm_embedding", x)

    def encode(self, ids):
        c, mask = self.c, (ids != 1)[:, None, None]
        x = self.embed("encoder", ids, c["encoder_vocab_size"], c["max_text_length"])
        for i in range(c["encoder_layers"]):
            name = f"layers.{i}"
            h = self.norm("encoder", name + ".pre_self_attn_layer_norm", x, False)
            h = self.attention("encoder", name + ".self_attn", h, h, mask)
            x = x + self.norm("encoder", name + ".self_attn_layer_norm", h)
            x = x + self.feed_forward("encoder", name, x)
            self.taps[f"encoder.layers.{i}"] = x
        return self.norm("encoder", "final_ln", x, False) if c["use_final_ln_encoder"] else x

    def decode(self, tokens, states, ids):
        """Logits of every place of `tokens` [B, n]."""
        c, n = self.c, tokens.shape[1]
        causal, text = torch.ones(n, n, dtype=torch.bool).tril(), (ids != 1)[:, None, None]
        x = self.embed("decoder", tokens, c["image_vocab_size"] + 1, c["image_length"])
        for i in range(c["decoder_layers"]):
            name = f"layers.{i}"
            h = self.norm("decoder", name + ".pre_self_attn_layer_norm", x, False)
            x = x + self.norm("decoder", name + ".self_attn_layer_norm", self.attention("decoder", name + ".self_attn", h, h, causal))
            h = self.norm("decoder", name + ".pre_encoder_attn_layer_norm", x, False)
            x = x + self.norm("decoder", name + ".encoder_attn_layer_norm", self.attention("decoder", name + ".encoder_attn", h, states, text))
            x = x + self.feed_forward("decoder", name, x)
            self.taps[f"decoder.layers.{i}"] = x
        x = self.norm("decoder", "final_ln", x, False) if c["use_final_ln_decoder"] else x
        return self.linear("decoder", "lm_head", x, c["image_vocab_size"] + 1, False)


class Vqgan:
    def __init__(self, c, seed):
        self.c, self.w, self.taps = c, Weights(seed), {}

    def conv(self, name, x, out, k):
        return F.conv2d(x, self.w.get_or_make(name + ".weight", out, x.shape[1], k, k), self.w.get_or_make(name + ".bias", out), padding=k // 2)

    def norm(self, name, x):
        n = x.shape[1]
        return F.group_norm(x, 32, self.w.get_or_make(name + ".weight", n), self.w.get_or_make(name + ".bias", n), 1e-6)

    def resnet(self, name, x, out):
        h = self.conv(name + ".conv1", F.silu(self.norm(name + ".norm1", x)), out, 3)
        h = self.conv(name + ".conv2", F.silu(self.norm(name + ".norm2", h)), out, 3)
        return h + (x if x.shape[1] == out else self.conv(name + ".nin_shortcut", x, out, 1))

    def attention(self, name, x):
        n, h = x.shape[1], self.norm(name + ".norm", x)
        q, k, v = (self.conv(f"{name}.{p}", h, n, 1).flatten(2) for p in "qkv")
        h = v @ (q.transpose(1, 2) @ k * n ** -0.5).softmax(-1).transpose(1, 2)
        return x + self.conv(name + ".proj_out", h.view_as(x), n, 1)

    def decode(self, tokens):
        c = self.c
        side, widths = math.isqrt(tokens.shape[1]), [c["ch"] * m for m in c["ch_mult"]]
        x = self.w.get_or_make("embedding.weight", c["n_embed"], c["embed_dim"])[tokens].view(1, side, side, -1).permute(0, 3, 1, 2)
        x = self.conv("post_quant_conv", x, c["z_channels"], 1)
        x = self.conv("decoder.conv_in", x, widths[-1], 3)
        x = self.resnet("decoder.mid.block_1", x, widths[-1])
        x = self.attention("decoder.mid.attn_1", x)
        x = self.resnet("decoder.mid.block_2", x, widths[-1])
        self.taps["vqgan.mid"] = x
        for level in reversed(range(len(widths))):
            for block in range(c["num_res_blocks"] + 1):
                x = self.resnet(f"decoder.up.{level}.block.{block}", x, widths[level])
                if c["resolution"] >> level in c["attn_resolutions"]:
                    x = self.attention(f"decoder.up.{level}.attn.{block}", x)
            if level:
                x = self.conv(f"decoder.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2), widths[level], 3)
            self.taps[f"vqgan.up.{level}"] = x
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), 3, 3)


def flax_tree(bart):
    """The parameters as dalle-mini keeps them: layers stacked, kernels turned, automatic names."""
    tree = {}
    norms = ["pre_self_attn_layer_norm", "self_attn_layer_norm", "pre_encoder_attn_layer_norm", "encoder_attn_layer_norm"]
    for part, weights in bart.parts.items():
        layers = {}
        for name, x in weights.items():
            *place, kind = name.split(".")
            x = x.numpy()
            if kind == "weight":
                kind = "embedding" if "embed_" in name else "kernel" if x.ndim == 2 else "scale"
            x = x.T if kind == "kernel" else x
            if place[0] == "lm_head":
                tree["lm_head"] = {kind: x}
                continue
            path = ["model", part]
            if place[0] == "layers":
                first, rest = place[2], place[3:]
                first = {"self_attn": "FlaxBartAttention_0", "encoder_attn": "FlaxBartAttention_1", "glu": "GLU_0", "ffn": "FFN_0"}.get(first) or f"LayerNorm_{norms.index(first)}"
                rest = [r.replace("ln", "LayerNorm_").replace("fc", "Dense_") for r in rest]
                layers.setdefault((first, *rest, kind), []).append(x)
                continue
            node = tree
            for step in path + place:
                node = node.setdefault(step, {})
            node[kind] = x
        for path, tensors in layers.items():
            node = tree
            for step in ["model", part, "layers", f"FlaxBart{part.capitalize()}Layers", *path[:-1]]:
                node = node.setdefault(step, {})
            node[path[-1]] = np.stack(tensors)
    return tree


def flatten(tree, path=()):
    for name, node in tree.items():
        yield from flatten(node, path + (name,)) if isinstance(node, dict) else [(".".join(path + (name,)), node)]


def write_msgpack(tree, path):
    """flax's format: an array is extension 1 over (shape, type, bytes)."""
    def pack(node):
        if isinstance(node, dict):
            return {name: pack(child) for name, child in node.items()}
        node = np.ascontiguousarray(node)
        return msgpack.ExtType(1, msgpack.packb((node.shape, node.dtype.name, node.tobytes()), use_bin_type=True))
    path.write_bytes(msgpack.packb(pack(tree), use_bin_type=True))


def flax_vqgan(weights):
    tree = {}
    for name, x in weights.items():
        name = name.replace("embedding.weight", "quantize.embedding.embedding")
        *place, kind = name.split(".")
        if place[:2] == ["decoder", "up"]:
            place = ["decoder", f"up_{place[2]}"] + ([f"{place[3]}_{place[4]}"] + place[5:] if place[3] in ("block", "attn") else place[3:])
        x = x.numpy()
        if kind == "weight":
            kind, x = ("kernel", x.transpose(2, 3, 1, 0)) if x.ndim == 4 else ("scale", x)
        node = tree
        for step in place:
            node = node.setdefault(step, {})
        node[kind] = x
    return tree


def draw(bart, vqgan, ids, call):
    """Prompt and settings -> everything that is compared."""
    c, codes = bart.c, vqgan.c["n_embed"]
    scale, generator = call["guidance"], torch.Generator().manual_seed(call["seed"])
    rows = ids if scale != 1 else ids[1:]
    states = bart.encode(rows)
    out = {"token_ids": rows.int(), "text_states": states} | bart.taps
    start = c.get("decoder_start_token_id", codes)
    tokens, logits = torch.full((len(rows), 1), start), []
    for _ in range(c["image_length"]):
        l = bart.decode(tokens, states, rows)[:, -1, :codes]
        logits.append(l)
        g = l[:1] + scale * (l[1:] - l[:1]) if scale != 1 else l
        if call["top_k"]:
            g = g.masked_fill(g < g.topk(min(call["top_k"], codes)).values[:, -1:], -math.inf)
        token = torch.multinomial((g / call["temperature"]).softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, token.expand(len(rows), 1)], 1)
    out |= {"logits": torch.stack(logits), "tokens": tokens[:1, 1:].int()}
    out |= {name: x for name, x in bart.taps.items() if name.startswith("decoder")}
    picture = vqgan.decode(tokens[:1, 1:])
    out |= vqgan.taps | {"image": picture * 2 - 1, "picture": (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)}
    return out


BASE = dict(
    model_type="dallebart", use_bias=False, force_ln_scale=False, use_glu=True, activation_function="gelu", use_final_ln_encoder=True,
    use_final_ln_decoder=True, normalize_text=True, ln_type="layernorm", ln_positions="normformer",
)
CASES = {
    "flax": dict(
        config=BASE | dict(
            d_model=24, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3, decoder_attention_heads=2, encoder_ffn_dim=37,
            decoder_ffn_dim=29, encoder_vocab_size=130, image_vocab_size=53, image_length=16, max_text_length=20, decoder_start_token_id=51,
        ),
        vqgan=dict(ch=32, ch_mult=[2, 1], num_res_blocks=0, attn_resolutions=[4], resolution=8, z_channels=12, embed_dim=10, n_embed=50),
        call=dict(prompt="A red apple, on the Cat's table!!", seed=7, guidance=2.5, top_k=0, temperature=0.9),
    ),
    "min_dalle": dict(
        config=BASE | dict(
            d_model=64, encoder_layers=1, decoder_layers=2, encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=70,
            decoder_ffn_dim=66, encoder_vocab_size=120, image_vocab_size=44, image_length=9, max_text_length=16,
        ),
        vqgan=dict(ch=32, ch_mult=[1], num_res_blocks=1, attn_resolutions=[3], resolution=3, z_channels=8, embed_dim=8, n_embed=44),
        call=dict(prompt="red Apple in 2 hats", seed=3, guidance=6.0, top_k=9, temperature=1.3),
    ),
    "variant": dict(
        config=BASE | dict(
            d_model=20, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=5, encoder_ffn_dim=22,
            decoder_ffn_dim=34, encoder_vocab_size=115, image_vocab_size=31, image_length=4, max_text_length=8, use_bias=True, force_ln_scale=True,
            use_glu=False, activation_function="quick_gelu", use_final_ln_encoder=False, decoder_start_token_id=31, normalize_text=False,
        ),
        vqgan=dict(ch=32, ch_mult=[1], num_res_blocks=0, attn_resolutions=[], resolution=2, z_channels=4, embed_dim=6, n_embed=31),
        call=dict(prompt="a cat in the red hat on one apple", seed=11, guidance=1.0, top_k=5, temperature=1.0),
    ),
}


def write_files(name, folder, bart, vqgan):
    vq = folder / "vqgan"
    if name == "min_dalle":
        for part, weights in bart.parts.items():
            torch.save({k: v.half() for k, v in weights.items()}, folder / f"{part}.pt")
        torch.save({k: v.half() for k, v in vqgan.w.items()}, folder / "detoker.pt")
        return
    vq.mkdir()
    (folder / "config.json").write_text(json.dumps(bart.c, indent=1) + "\n")
    (vq / "config.json").write_text(json.dumps(vqgan.c, indent=1) + "\n")
    if name == "flax":
        half = lambda tree: {k: half(v) if isinstance(v, dict) else v.astype(np.float16) for k, v in tree.items()}
        write_msgpack(half(flax_tree(bart)), folder / "flax_model.msgpack")
        write_msgpack(half(flax_vqgan(vqgan.w)), vq / "flax_model.msgpack")
    else:
        tree = flatten(flax_tree(bart))
        save_file({k: torch.from_numpy(np.ascontiguousarray(v)).half() for k, v in tree}, folder / "flax_model.safetensors")
        # As taming-transformers' own checkpoints have it.
        names = {k: ("quantize." + k if k.startswith("embedding") else k) for k in vqgan.w}
        save_file({names[k]: v.half() for k, v in vqgan.w.items()} | {"encoder.conv_in.bias": torch.zeros(3).half()}, vq / "model.safetensors")


@torch.no_grad()
def make(name):
    case, folder = CASES[name], ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    vocab = tokenizer_files(folder)
    bart, vqgan, call = Bart(dict(case["config"]), 5), Vqgan(case["vqgan"], 9), case["call"]
    length = bart.c["max_text_length"]
    if name == "min_dalle":
        rows = [min_dalle_ids(vocab, text, length) for text in ("", call["prompt"])]
    else:
        tokenizer = BartTokenizerFast.from_pretrained(str(folder))
        # dalle-mini's normaliser would make this of the prompt of `flax`.
        prompt = " a red apple, on the cat's table" if bart.c["normalize_text"] else call["prompt"]
        rows = tokenizer(["", prompt], padding="max_length", truncation=True, max_length=length).input_ids
    ids = torch.tensor([row + [1] * (length - len(row)) for row in rows])
    out = draw(bart, vqgan, ids, call)
    write_files(name, folder, bart, vqgan)
    (folder / "case.json").write_text(json.dumps(call, indent=1) + "\n")
    save_file({k: v.clone().contiguous() for k, v in out.items()}, folder / "golden.safetensors")
    kib = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1024
    print(f"{name:12} {kib:5.0f} KiB, tokens {out['tokens'].flatten().tolist()}, picture {out['picture'].float().std():.1f}")


def kernels():
    """What the f64 references of the kernels are compared with, and torch's own draws."""
    g = torch.Generator().manual_seed(1)
    random = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)
    # Two texts of three heads of eight channels, of which only the first keys count.
    q, k, v, counts = random(2, 4, 24), random(2, 7, 24), random(2, 7, 24), torch.tensor([3, 7])
    split = lambda x: x.unflatten(-1, (3, 8)).transpose(1, 2)
    mask = (torch.arange(7) < counts[:, None])[:, None, None]
    h = F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask).transpose(1, 2).flatten(2)
    out = {"attention.q": q, "attention.kv": torch.cat([k, v], -1), "attention.last": counts - 1, "attention.out": h}
    draws = []
    for seed, codes, top_k, temperature, scale in [(0, 9, 4, 1.0, 2.0), (42, 1000, 50, 0.7, 8.0), (2**40 + 5, 513, 513, 1.5, 3.0)]:
        logits = (4 * random(2, codes)).float()
        guided = logits[:1] + scale * (logits[1:] - logits[:1])
        kept = guided.masked_fill(guided < guided.topk(top_k).values[:, -1:], -math.inf)
        g2 = torch.Generator().manual_seed(seed)
        # Three draws, so that the generator's state counts.
        tokens = [torch.multinomial((kept / temperature).softmax(-1), 1, generator=g2).item() for _ in range(3)]
        out[f"draw.{len(draws)}"] = logits
        draws.append(dict(seed=str(seed), top_k=top_k, temperature=temperature, scale=scale, tokens=tokens))
    save_file({k: v.float().contiguous() for k, v in out.items()}, ROOT / "kernels.safetensors")
    (ROOT / "draws.json").write_text(json.dumps(draws, indent=1) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    for name in sys.argv[1:] or CASES:
        make(name)
    kernels()
