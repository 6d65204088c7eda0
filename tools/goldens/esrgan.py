"""Writes tests/goldens/esrgan/: tiny upscalers of ESRGAN's family with random weights, in every layout of files, and what they make.

usage: python tools/goldens/esrgan.py

The network is written down from the papers: dense blocks in residual blocks (arXiv:1809.00219), pixels unshuffled first for
scales 1 and 2 (arXiv:2107.10833), further residuals (ESRGAN+, arXiv:2001.08073). `golden.safetensors` holds, per case, the picture
from -1 to 1, the result from -1 to 1, and for some what the layers leave; weights are in halves, arithmetic in f32.
"""
import json

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from bpe import REPOSITORY

FOLDER = REPOSITORY / "tests" / "goldens" / "esrgan"
# layout: the names of tensors; wrap: what a training puts around them; size: height and width of the picture.
CASES = [
    dict(name="real_x4", layout="words", wrap=["params_ema"], width=8, growth=4, blocks=2, doublings=2, unshuffle=1, size=(6, 9)),
    dict(name="real_x2", layout="words", wrap=[], width=10, growth=6, blocks=1, doublings=2, unshuffle=2, size=(9, 6), taps=True),
    dict(name="real_x1", layout="words", wrap=[], width=8, growth=5, blocks=1, doublings=2, unshuffle=4, size=(18, 21)),
    dict(name="later_x4", layout="later", wrap=["params", "params_ema"], width=7, growth=3, blocks=1, doublings=2, unshuffle=1, size=(9, 7)),
    dict(name="later_x2", layout="later", wrap=[], width=8, growth=4, blocks=1, doublings=1, unshuffle=1, size=(5, 16)),
    dict(name="first_x8", layout="numbered", wrap=[], width=8, growth=2, blocks=1, doublings=3, unshuffle=1, size=(4, 3)),
    dict(name="first_x4", layout="numbered", wrap=[], width=7, growth=3, blocks=2, doublings=2, unshuffle=1, size=(10, 9)),
    dict(name="first_x2", layout="numbered", wrap=[], width=8, growth=1, blocks=1, doublings=1, unshuffle=1, size=(1, 1)),
    dict(name="first_x1", layout="numbered", wrap=[], width=5, growth=4, blocks=1, doublings=0, unshuffle=1, size=(8, 17)),
    dict(name="plus_x4", layout="numbered", wrap=[], width=8, growth=4, blocks=2, doublings=2, unshuffle=1, size=(5, 6), plus=True, taps=True),
]


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def leaky(x):
    return F.leaky_relu(x, 0.2)


class Dense(nn.Module):
    """Every convolution reads the input and what all before it made."""

    def __init__(self, width, growth, plus):
        super().__init__()
        for i in range(4):
            self.add_module(f"conv{i + 1}", conv(width + i * growth, growth))
        self.conv5 = conv(width + 4 * growth, width)
        self.conv1x1 = nn.Conv2d(width, growth, 1, bias=False) if plus else None

    def forward(self, x):
        made = [x]
        for i in range(1, 5):
            y = leaky(getattr(self, f"conv{i}")(torch.cat(made, 1)))
            if self.conv1x1 is not None and i == 2:
                y = y + self.conv1x1(x)
            if self.conv1x1 is not None and i == 4:
                y = y + made[2]
            made.append(y)
        return x + 0.2 * self.conv5(torch.cat(made, 1))


class Residual(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        for i in range(3):
            self.add_module(f"rdb{i + 1}", Dense(*shape))

    def forward(self, x):
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class Network(nn.Module):
    def __init__(self, width, growth, blocks, doublings, unshuffle=1, plus=False):
        super().__init__()
        self.doublings, self.unshuffle = doublings, unshuffle
        self.conv_first = conv(3 * unshuffle**2, width)
        self.body = nn.ModuleList(Residual(width, growth, plus) for _ in range(blocks))
        self.conv_body = conv(width, width)
        for i in range(doublings):
            self.add_module(f"conv_up{i + 1}", conv(width, width))
        self.conv_hr = conv(width, width)
        self.conv_last = conv(width, 3)

    def forward(self, x, taps=None):
        """[B, 3, H, W] from 0 to 1 -> [B, 3, s H, s W]."""
        taps = {} if taps is None else taps
        height, width = x.shape[2:]
        unit = self.unshuffle
        if unit > 1:
            x = F.pixel_unshuffle(F.pad(x, (0, -width % unit, 0, -height % unit), "reflect"), unit)
        first = x = taps["conv_first"] = self.conv_first(x)
        for i, block in enumerate(self.body):
            x = taps[f"body.{i}"] = block(x)
        x = taps["conv_body"] = first + self.conv_body(x)
        for i in range(1, self.doublings + 1):
            x = taps[f"conv_up{i}"] = leaky(getattr(self, f"conv_up{i}")(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = taps["conv_hr"] = leaky(self.conv_hr(x))
        scale = 2**self.doublings // unit
        return self.conv_last(x)[:, :, : scale * height, : scale * width]


def randomise(network, seed, halves=True):
    """Every parameter drawn anew; results around the middle of the range."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            n = torch.randn(p.shape, generator=g)
            p.copy_(0.2 * n if p.ndim == 1 else 1.3 * n / p[0].numel() ** 0.5)
        network.conv_last.weight *= 0.15
        network.conv_last.bias += 0.5
        if halves:
            for p in network.parameters():
                p.copy_(p.half().float())
    return network.eval()


def named(network, layout):
    """The tensors under the names of one of the three families of files."""
    state = {k: v.clone() for k, v in network.state_dict().items()}
    if layout == "words":
        return state
    blocks, doublings = len(network.body), network.doublings
    outer = dict(conv_first="conv_first", conv_body="trunk_conv", conv_hr="HRconv", conv_last="conv_last")
    outer |= {f"conv_up{i}": f"upconv{i}" for i in range(1, doublings + 1)}
    block, inner = "RRDB_trunk", ""
    if layout == "numbered":
        outer = dict(conv_first="model.0", conv_body=f"model.1.sub.{blocks}")
        outer |= {f"conv_up{i}": f"model.{3 * i}" for i in range(1, doublings + 1)}
        outer |= dict(conv_hr=f"model.{3 * doublings + 2}", conv_last=f"model.{3 * doublings + 4}")
        block, inner = "model.1.sub", ".0"
    renamed = {}
    for key, value in state.items():
        layer, kind = key.rsplit(".", 1)
        if layer.startswith("body."):
            _, index, dense, name = layer.split(".")
            end = "" if name == "conv1x1" else inner
            layer = f"{block}.{index}.{dense.upper()}.{name}{end}"
        else:
            layer = outer[layer]
        renamed[f"{layer}.{kind}"] = value
    return renamed


def picture(seed, height, width):
    """From -1 to 1, bytes' values."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), generator=g).float() / 127.5 - 1


def enlarge(network, image, taps=None):
    """From -1..1 to the same."""
    with torch.no_grad():
        return network(image * 0.5 + 0.5, taps) * 2 - 1


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    golden, listed = {}, []
    for number, case in enumerate(CASES):
        name = case["name"]
        shape = {key: case[key] for key in ("width", "growth", "blocks", "doublings", "unshuffle")}
        network = randomise(Network(**shape, plus=case.get("plus", False)), 100 + number)
        tensors = {k: v.half() for k, v in named(network, case["layout"]).items()}
        save_file(tensors, FOLDER / f"{name}.safetensors")
        if case["wrap"]:
            # What lies beside the averaged copy is another, which must not be taken.
            copies = {key: {k: v + 1 for k, v in tensors.items()} for key in case["wrap"]}
            copies[case["wrap"][-1]] = tensors
            torch.save(copies, FOLDER / f"{name}.pth")
        elif name == "first_x4":
            torch.save(tensors, FOLDER / f"{name}.pth", _use_new_zipfile_serialization=False)
        image = picture(200 + number, *case["size"])
        taps = {}
        golden[f"{name}.picture"] = image
        golden[f"{name}.image"] = enlarge(network, image, taps)
        if case.get("taps"):
            golden |= {f"{name}.{tap}": value for tap, value in taps.items()}
        listed.append(shape | dict(name=name, scale=2 ** case["doublings"] // case["unshuffle"], plus=case.get("plus", False), tapped=case.get("taps", False)))
    golden["activation.x"] = torch.cat([torch.linspace(-12, 12, 97), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])])
    golden["activation.y"] = leaky(golden["activation.x"].double()).float()
    save_file({k: v.contiguous() for k, v in golden.items()}, FOLDER / "golden.safetensors")
    (FOLDER / "cases.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
