"""Writes tests/goldens/kernels.safetensors: inputs, parameters and outputs of single PyTorch operations.

usage: python tools/goldens/kernels.py

Every operation is a group of tensors `OP.INDEX.NAME`; the metadata entry `cases` is JSON, `OP.INDEX` -> its settings.
Layouts are PyTorch's: images [B, C, H, W], sequences [B, T, C], linear weights [out, in], convolution
weights [out, in, kh, kw]. Inputs are f32; outputs are computed in f64 from them and rounded once to f32, except the
timestep embedding, which is diffusers' own f32 result (up to 6e-5 from the exact one, by its f32 angles).
"""
import json

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import save_file

from bpe import REPOSITORY
from pipelines import generator_for

tensors, settings = {}, {}


def rand(name, *shape, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(*shape, generator=generator_for(name, 2))


def put(group, inputs, output, **facts):
    """Stores one operation: named f32 inputs, the f64 output as `y`, its settings."""
    for key, value in inputs.items():
        tensors[f"{group}.{key}"] = value.clone().contiguous()
    tensors[f"{group}.y"] = output.to(torch.float32).contiguous()
    settings[group] = json.dumps(facts)
    assert torch.isfinite(output).all() and output.std() > 0, group


def d(inputs):
    return [v.double() for v in inputs.values()]


ACTIVATIONS = dict(
    none=lambda x: x, silu=F.silu, gelu=F.gelu, quick_gelu=lambda x: x * torch.sigmoid(1.702 * x), gelu_tanh=lambda x: F.gelu(x, approximate="tanh")
)


def linears():
    shapes = [(7, 20, 33), (1, 5, 3), (19, 36, 24), (3, 70, 130), (2, 129, 17)]
    for i, (act, (rows, wide, out)) in enumerate(zip(["none", "silu", "gelu", "quick_gelu", "none"], shapes)):
        group = f"linear.{i}"
        x = dict(x=rand(group + "x", rows, wide), weight=rand(group + "w", out, wide, scale=wide**-0.5))
        if i != 4:
            x["bias"] = rand(group + "b", out, scale=0.3)
        put(group, x, ACTIVATIONS[act](F.linear(*d(x))), activation=act, bias="bias" in x)
    group = "linear_residual.0"
    x = dict(x=rand("lr", 9, 20), weight=rand("lrw", 24, 20, scale=0.2), bias=rand("lrb", 24, scale=0.3))
    residual = rand("lrr", 9, 24)
    put(group, x | dict(residual=residual), F.linear(*d(x)) + residual.double())
    for i, (rows, wide, inner) in enumerate([(11, 20, 48), (5, 6, 7)]):
        group = f"geglu.{i}"
        x = dict(x=rand(group, rows, wide), weight=rand(group + "w", 2 * inner, wide, scale=wide**-0.5), bias=rand(group + "b", 2 * inner, scale=0.3))
        hidden, gate = F.linear(*d(x)).chunk(2, dim=-1)
        put(group, x, hidden * F.gelu(gate), note="first half times gelu(second half)")
    for act, function in ACTIVATIONS.items():
        if act != "none":
            x = torch.cat([torch.linspace(-12, 12, 97), rand(act, 32)])
            put(f"activation.{act}", dict(x=x), function(x.double()), activation=act)


def convolutions():
    rows = [
        dict(b=2, i=5, o=7, h=6, w=9, k=3, stride=1, pad=(1, 1, 1, 1), up=False),
        dict(b=1, i=20, o=12, h=5, w=4, k=1, stride=1, pad=(0, 0, 0, 0), up=False),
        dict(b=2, i=6, o=9, h=7, w=10, k=3, stride=2, pad=(1, 1, 1, 1), up=False),
        dict(b=1, i=6, o=5, h=8, w=5, k=3, stride=2, pad=(0, 1, 0, 1), up=False),
        dict(b=2, i=4, o=10, h=3, w=5, k=3, stride=1, pad=(1, 1, 1, 1), up=True),
        dict(b=1, i=36, o=20, h=1, w=1, k=3, stride=1, pad=(1, 1, 1, 1), up=False),
        dict(b=1, i=24, o=36, h=11, w=3, k=3, stride=1, pad=(1, 1, 1, 1), up=False),
        dict(b=1, i=10, o=3, h=9, w=13, k=3, stride=1, pad=(1, 1, 1, 1), up=False),
    ]
    for n, c in enumerate(rows):
        group = f"conv2d.{n}"
        fan = c["i"] * c["k"] ** 2
        x = dict(x=rand(group, c["b"], c["i"], c["h"], c["w"]), weight=rand(group + "w", c["o"], c["i"], c["k"], c["k"], scale=fan**-0.5))
        x["bias"] = rand(group + "b", c["o"], scale=0.3)
        image, weight, bias = d(x)
        image = F.interpolate(image, scale_factor=2.0, mode="nearest") if c["up"] else image
        y = F.conv2d(F.pad(image, c["pad"]), weight, bias, stride=c["stride"])
        put(group, x, y, stride=c["stride"], kernel=c["k"], pad_left_right_top_bottom=c["pad"], upsample_nearest_2x=c["up"])
    x = dict(x=rand("resize", 2, 5, 3, 2))
    y = F.interpolate(x["x"].double(), size=(5, 3), mode="nearest")
    put("resize_nearest.0", x, y, size=[5, 3], note="an odd skip's size, diffusers upsample_size")


def norms():
    rows = [(2, 20, 6, 7, 4, 1e-5, 0, 1, True), (1, 36, 5, 3, 6, 1e-6, 0, 1, False), (1, 12, 1, 1, 3, 1e-5, 0, 1, True)]
    rows += [(2, 6, 4, 9, 2, 1e-6, 1000, 1, False), (1, 24, 9, 5, 8, 1e-5, -3, 0.01, True), (1, 64, 3, 5, 32, 1e-5, 0, 1, True)]
    for n, (b, c, h, w, groups, eps, mean, scale, silu) in enumerate(rows):
        group = f"group_norm.{n}"
        x = dict(x=rand(group, b, c, h, w, mean=mean, scale=scale))
        x |= dict(weight=rand(group + "w", c, mean=1, scale=0.3), bias=rand(group + "b", c, scale=0.3))
        y = F.group_norm(x["x"].double(), groups, x["weight"].double(), x["bias"].double(), eps)
        put(group, x, F.silu(y) if silu else y, groups=groups, eps=eps, silu=silu)
    for n, (rows_, c, eps, mean) in enumerate([(7, 20, 1e-5, 0), (3, 131, 1e-5, 0), (5, 36, 1e-6, 1000), (1, 5, 1e-5, 0)]):
        group = f"layer_norm.{n}"
        x = dict(x=rand(group, rows_, c, mean=mean), weight=rand(group + "w", c, mean=1, scale=0.3), bias=rand(group + "b", c, scale=0.3))
        put(group, x, F.layer_norm(x["x"].double(), (c,), x["weight"].double(), x["bias"].double(), eps), eps=eps)


def attentions():
    rows = [(2, 3, 9, 9, 5, True), (2, 2, 15, 7, 8, False), (1, 2, 33, 33, 40, False), (1, 1, 20, 77, 20, False)]
    rows += [(1, 4, 77, 77, 12, True), (1, 1, 6, 6, 96, False), (2, 2, 1, 3, 6, False), (1, 2, 70, 130, 6, False)]
    for n, (b, heads, tq, tk, width, causal) in enumerate(rows):
        group = f"attention.{n}"
        x = {k: rand(group + k, b, t, heads * width) for k, t in (("q", tq), ("k", tk), ("v", tk))}
        x["q"] = x["q"] * (30.0 if n == 6 else 1.5)
        q, k, v = (t.view(b, -1, heads, width).transpose(1, 2) for t in d(x))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(b, tq, -1)
        put(group, x, y, heads=heads, causal=causal, scale=width**-0.5, layout="[B, T, heads * width]")
    x = dict(x=rand("softmax", 5, 37, scale=4) + torch.tensor([0.0, 500.0, -500.0, 80.0, 1.0])[:, None])
    put("softmax.0", x, torch.softmax(x["x"].double(), -1), dim=-1)


def sinusoid(t, dim, flip, shift, scale=1.0, dtype=torch.float64):
    """diffusers' get_timestep_embedding in f64; checked against the f32 original below."""
    half = dim // 2
    frequency = torch.exp(-torch.log(torch.tensor(10000.0, dtype=dtype)) * torch.arange(half, dtype=dtype) / (half - shift))
    angle = scale * t.to(dtype)[:, None] * frequency
    parts = [angle.cos(), angle.sin()] if flip else [angle.sin(), angle.cos()]
    return F.pad(torch.cat(parts, -1), (0, dim % 2))


def embeddings():
    t = torch.tensor([801.0, 0.0, 1.0, 999.0, 499.5])
    for n, (dim, flip, shift) in enumerate([(20, True, 0), (20, False, 0), (36, True, 1), (7, False, 1), (12, True, 0)]):
        y = sinusoid(t, dim, flip, shift)
        reference = get_timestep_embedding(t, dim, flip_sin_to_cos=flip, downscale_freq_shift=shift)
        assert (y - reference).abs().max() < 2e-4
        put(f"timestep_embedding.{n}", dict(t=t), reference, dim=dim, flip_sin_to_cos=flip, freq_shift=shift)
    w = torch.tensor([7.5, 0.0, 0.25])
    put("guidance_embedding.0", dict(w=w), sinusoid(w, 12, False, 1, 1000.0), dim=12, note="LCM: w = guidance - 1, times 1000")
    ids = torch.tensor([5, 0, 11, 11, 3], dtype=torch.int32)
    x = dict(ids=ids, table=rand("table", 12, 7), positions=rand("positions", 5, 7))
    y = x["table"][ids.long()].double() + x["positions"].double()
    put("embedding.0", x, y)


def guidance():
    x = dict(uncond=rand("uncond", 1, 4, 3, 5), cond=rand("cond", 1, 4, 3, 5))
    u, c = d(x)
    guided = u + 7.5 * (c - u)
    put("guidance.0", x, guided, scale=7.5, rescale=0.0)
    rescaled = guided * (c.std() / guided.std())
    put("guidance.1", x, 0.7 * rescaled + 0.3 * guided, scale=7.5, rescale=0.7, note="unbiased deviations over C, H, W")
    x = dict(x=rand("picture", 1, 3, 4, 5, scale=0.8))
    put("picture.0", x, ((x["x"] * 0.5 + 0.5).clamp(0, 1) * 255).round().double(), note="f32 as in diffusers, half to even")


if __name__ == "__main__":
    for make in (linears, convolutions, norms, attentions, embeddings, guidance):
        make()
    path = REPOSITORY / "tests" / "goldens" / "kernels.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    # One metadata entry keeps the file the same from run to run (safetensors writes several in no fixed order).
    save_file(tensors, path, metadata={"cases": json.dumps({k: json.loads(v) for k, v in settings.items()})})
    print(f"{len(settings)} operations, {path.stat().st_size / 1024:.0f} KiB")
