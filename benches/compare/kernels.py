"""The convolutions, linear layers and attentions of scumble's bench, in PyTorch."""

import re

import torch
import torch.nn.functional as F

from timing import dtype, median

CONV = re.compile(r"^conv2d: SD.*, (\d+) x (\d+), (\d+) to (\d+), (f32|f16)$")
LINEAR = re.compile(r"^matmul: (?:SD.*|square), (\d+) x (\d+) to (\d+), (f32|f16)$")
ATTENTION = re.compile(r"^attention: SD.*, (\d+) tokens(?: to (\d+))?(?:, (\d+) heads of (\d+))?, (f32|f16)$")


def conv(match, device, kind):
    """A 3x3 convolution; scumble's cases name width before height, and channels-last is what PyTorch's kernels like best."""
    width, height, inputs, outputs = map(int, match.groups()[:4])
    x = torch.randn(1, inputs, height, width, device=device, dtype=kind).to(memory_format=torch.channels_last)
    w = torch.randn(outputs, inputs, 3, 3, device=device, dtype=kind).to(memory_format=torch.channels_last)
    return (lambda x, w: F.conv2d(x, w, padding=1)), [x, w], 2 * height * width * inputs * outputs * 9


def linear(match, device, kind, name):
    """A linear layer; "gated" ones have twice the columns, half of which gate the others (GEGLU)."""
    rows, inputs, outputs = map(int, match.groups()[:3])
    gated = "gated" in name
    columns = 2 * outputs if gated else outputs
    x = torch.randn(rows, inputs, device=device, dtype=kind)
    w = torch.randn(columns, inputs, device=device, dtype=kind)
    b = torch.randn(columns, device=device, dtype=kind) if gated or "back" in name else None
    residual = torch.randn(rows, outputs, device=device, dtype=kind) if "back" in name else None

    def function(x, w, b, residual):
        y = F.linear(x, w, b)
        if gated:
            y, gate = y.chunk(2, dim=-1)
            y = y * F.gelu(gate)
        return y if residual is None else y + residual

    return function, [x, w, b, residual], 2 * rows * inputs * columns


def attention(match, device, kind):
    """Attention of one picture: 8 heads of 40 unless the name tells others."""
    queries, keys, heads, width = (int(part) if part else None for part in match.groups()[:4])
    keys, heads, width = keys or queries, heads or 8, width or 40
    q = torch.randn(1, heads, queries, width, device=device, dtype=kind)
    k, v = (torch.randn(1, heads, keys, width, device=device, dtype=kind) for _ in range(2))
    return F.scaled_dot_product_attention, [q, k, v], 4 * heads * queries * keys * width


def work(row, device, precision):
    """Function, inputs and operations of a row; None for a row that PyTorch is not asked for."""
    name, kind = row["name"], dtype(precision)
    for pattern, build in [(CONV, conv), (ATTENTION, attention)]:
        match = pattern.match(name)
        if match and match[match.lastindex] == precision:
            return build(match, device, kind)
    match = LINEAR.match(name)
    if match and match[4] == precision:
        return linear(match, device, kind, name)
    return None


def times(row, args):
    """Pairs of what was timed and its seconds."""
    found = work(row, args.device, args.precision)
    if found is None:
        return
    function, inputs, flops = found
    # scumble may count a softmax or an activation; a factor tells that the shapes were misread.
    if not 0.8 <= row["flops"] / flops <= 1.25:
        print(f"{row['name']}: left out, scumble counts {row['flops']} operations and this script {flops}")
        return
    yield "torch eager", median(args.device, function, inputs, args.runs)
    if not args.no_compile:
        compiled = torch.compile(function, dynamic=False)
        yield "torch compiled", median(args.device, compiled, inputs, args.runs)
