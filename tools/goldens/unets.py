"""Writes tests/goldens/unets/: tiny UNets of every kind with random weights, what they were given and what their blocks gave.

usage: python tools/goldens/unets.py [CASE...]      (all cases if none is named)

One folder a case: config.json and the weights (f16) as diffusers saves them, golden.safetensors with the inputs and taps, named by the
module's path; and kernels.safetensors: what torch makes of pooling, modulated GroupNorm and GELU behind it.
"""
import json
import shutil
import sys

import diffusers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bpe import REPOSITORY
from pipelines import generator_for

ROOT = REPOSITORY / "tests" / "goldens" / "unets"
SIMPLE = dict(
    down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    resnet_time_scale_shift="scale_shift",
)
CROSS = dict(
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"]
)
# name: class, config, (batch, height, width, tokens), inputs by name and width
CASES = {
    "if_1": ("UNet2DConditionModel", SIMPLE | dict(
        in_channels=3, out_channels=6, block_out_channels=[8, 12, 16], layers_per_block=[2, 1, 1], norm_num_groups=4,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        act_fn="gelu", attention_head_dim=4, cross_attention_dim=64, cross_attention_norm="group_norm",
        encoder_hid_dim=40, encoder_hid_dim_type="text_proj", addition_embed_type="text",
        addition_embed_type_num_heads=4), (2, 8, 12, 7), dict(text=40)),
    "if_2": ("UNet2DConditionModel", SIMPLE | dict(
        in_channels=6, out_channels=6, block_out_channels=[8, 12], layers_per_block=[1, 2], norm_num_groups=4,
        act_fn="gelu", attention_head_dim=4, cross_attention_dim=32, cross_attention_norm="group_norm",
        encoder_hid_dim=20, addition_embed_type="text", addition_embed_type_num_heads=2, class_embed_type="timestep",
        resnet_skip_time_act=True, resnet_out_scale_factor=1.414, mid_block_scale_factor=1.7, only_cross_attention=True,
        time_embedding_dim=28, time_embedding_act_fn="gelu"), (2, 6, 10, 5), dict(text=20, number=1)),
    "karlo": ("UNet2DConditionModel", SIMPLE | dict(
        in_channels=3, out_channels=6, block_out_channels=[12, 20], layers_per_block=1, norm_num_groups=4,
        attention_head_dim=[4, 2], cross_attention_dim=18, class_embed_type="identity",
        down_block_types=["SimpleCrossAttnDownBlock2D"] * 2, up_block_types=["SimpleCrossAttnUpBlock2D"] * 2),
        (3, 6, 4, 9), dict(text=18, vector=48, mask=9)),
    "karlo_sr": ("UNet2DModel", dict(
        in_channels=6, out_channels=3, block_out_channels=[8, 12, 12], layers_per_block=2, norm_num_groups=4,
        down_block_types=["ResnetDownsampleBlock2D"] * 3, up_block_types=["ResnetUpsampleBlock2D"] * 3,
        add_attention=False, resnet_time_scale_shift="scale_shift"), (2, 8, 12, 0), {}),
    "kandinsky": ("UNet2DConditionModel", SIMPLE | dict(
        in_channels=4, out_channels=8, block_out_channels=[8, 12], layers_per_block=2, norm_num_groups=4,
        attention_head_dim=6, cross_attention_dim=22, addition_embed_type="image", encoder_hid_dim=30,
        encoder_hid_dim_type="image_proj", only_cross_attention=[False, True]), (2, 6, 8, 0), dict(image=30)),
    "kandinsky_2_1": ("UNet2DConditionModel", SIMPLE | dict(
        in_channels=4, out_channels=4, block_out_channels=[8, 12], layers_per_block=1, norm_num_groups=4,
        attention_head_dim=4, cross_attention_dim=12, addition_embed_type="text_image", encoder_hid_dim=20,
        encoder_hid_dim_type="text_image_proj", cross_attention_norm="layer_norm", act_fn="silu",
        mid_block_only_cross_attention=True), (2, 4, 6, 5), dict(text=20, image=12, pooled=12)),
    "x4": ("UNet2DConditionModel", dict(
        in_channels=7, out_channels=4, block_out_channels=[8, 12, 16], layers_per_block=1, norm_num_groups=4,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], attention_head_dim=4,
        cross_attention_dim=20, num_class_embeds=50, only_cross_attention=[True, True, False], use_linear_projection=True,
        upcast_attention=True), (2, 6, 9, 7), dict(text=20, row=50)),
    "cross_scale_shift": ("UNet2DConditionModel", CROSS | dict(
        in_channels=4, out_channels=4, block_out_channels=[12, 20], layers_per_block=[1, 2], norm_num_groups=4,
        attention_head_dim=[2, 4], cross_attention_dim=14, resnet_time_scale_shift="scale_shift", act_fn="gelu",
        timestep_post_act="silu", class_embed_type="projection", projection_class_embeddings_input_dim=9,
        mid_block_scale_factor=1.3, resnet_skip_time_act=True, resnet_out_scale_factor=3.0), (1, 7, 5, 6), dict(text=14, vector=9)),
    "mid_resnet": ("UNet2DConditionModel", dict(
        in_channels=3, out_channels=3, block_out_channels=[12, 20], layers_per_block=1, norm_num_groups=4,
        down_block_types=["SimpleCrossAttnDownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "CrossAttnUpBlock2D"],
        mid_block_type="UNetMidBlock2D", attention_head_dim=4, cross_attention_dim=10, class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=7, resnet_skip_time_act=True, resnet_out_scale_factor=0.8,
        flip_sin_to_cos=False, freq_shift=1), (2, 4, 6, 3), dict(text=10, vector=7)),
    "unconditional": ("UNet2DModel", dict(
        in_channels=3, out_channels=3, block_out_channels=[12, 20], layers_per_block=1, norm_num_groups=4,
        down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"],
        attention_head_dim=5, class_embed_type="timestep", act_fn="gelu", norm_eps=1e-4, mid_block_scale_factor=1.2), (2, 6, 8, 0), dict(number=1)),
    "unconditional_resnets": ("UNet2DModel", dict(
        in_channels=2, out_channels=3, block_out_channels=[8, 12], layers_per_block=1, norm_num_groups=4,
        down_block_types=["AttnDownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "AttnUpBlock2D"],
        attention_head_dim=None, downsample_type="resnet", upsample_type="resnet", num_class_embeds=11,
        resnet_time_scale_shift="scale_shift"), (2, 4, 6, 0), dict(row=11)),
}


def randomise(module, name):
    """Every parameter, rounded to f16: norms near 1, vectors near 0, matrices of variance 1 / fan-in."""
    with torch.no_grad():
        for key, p in module.named_parameters():
            n = torch.randn(p.shape, generator=generator_for(key, sum(map(ord, name))))
            if p.ndim == 1:
                n = 1 + 0.2 * n if key.endswith("weight") else 0.2 * n
            elif key != "class_embedding.weight" and "positional" not in key:
                n = n / p[0].numel() ** 0.5
            p.copy_(n.half().float())


def inputs(case, name):
    _, config, (batch, height, width, tokens), given = CASES[case]
    g = torch.Generator().manual_seed(sum(map(ord, name)))
    x = dict(sample=torch.randn(batch, config["in_channels"], height, width, generator=g))
    x["timestep"] = torch.tensor([801.0, 37.0, 999.0])[:batch]
    for kind, size in given.items():
        shape = dict(text=(batch, tokens, size), number=(batch,), row=(batch,)).get(kind, (batch, size))
        x[kind] = torch.randn(shape, generator=g)
        if kind == "mask":
            lengths = torch.tensor([4, size, 1])[:batch]
            x[kind] = (torch.arange(size)[None] < lengths[:, None]).float()
        if kind == "number":
            x[kind] = torch.tensor([250.0, 3.0, 90.0])[:batch]
        if kind == "row":
            x[kind] = torch.tensor([size - 1, 3, 0], dtype=torch.int32)[:batch]
    return x


def wanted(name, config):
    """Blocks, embeddings, and all layers of blocks of the first and last."""
    parts = name.split(".")
    if name in ("conv_in", "mid_block", "add_embedding") or len(parts) == 2 and parts[0] in ("down_blocks", "up_blocks"):
        return True
    layer = parts[-2] if len(parts) > 1 else ""
    if layer not in ("resnets", "attentions", "downsamplers", "upsamplers") or "transformer_blocks" in parts:
        return False
    # A convolution that changes the size has no tap of its own: its block's is the same value.
    if parts[0] == "mid_block":
        return True
    return parts[-1] == "0" and (layer in ("resnets", "attentions") and parts[1] in ("0", "1"))


def run(module, x, config):
    taps, handles = {}, []

    def keep(name):
        def hook(_, __, output):
            output = output[0] if isinstance(output, (tuple, list)) else output
            output = output if torch.is_tensor(output) else output[0]
            taps[f"unet.{name}"] = output.detach().clone()

        return hook

    for name, part in module.named_modules():
        if wanted(name, config):
            handles.append(part.register_forward_hook(keep(name)))
    kwargs = {}
    label = next((x[key] for key in ("number", "row", "vector") if key in x), None)
    if label is not None:
        kwargs["class_labels"] = label.long() if "row" in x else label
    if isinstance(module, diffusers.UNet2DConditionModel):
        kwargs["encoder_hidden_states"] = x.get("text")
        added = {"image_embeds": x.get("image"), "text_embeds": x.get("pooled")}
        kwargs["added_cond_kwargs"] = {k: v for k, v in added.items() if v is not None}
        if "mask" in x:
            kwargs["attention_mask"] = x["mask"]
    with torch.no_grad():
        taps["unet"] = module(x["sample"], x["timestep"], **kwargs).sample
    for handle in handles:
        handle.remove()
    return taps


def make(name):
    kind, config, _, _ = CASES[name]
    config = {key: value for key, value in config.items() if not key.endswith("_note")}
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    module = getattr(diffusers, kind)(**config).eval()
    randomise(module, name)
    x = inputs(name, name)
    taps = run(module, x, config)
    largest = taps["unet"].std()
    with torch.no_grad():
        module.conv_out.weight.copy_((module.conv_out.weight / largest).half().float())
    taps = run(module, x, config)
    for key, tap in taps.items():
        assert torch.isfinite(tap).all() and tap.std() > 1e-2, f"{name}: {key} {tap.std()}"
    module.save_config(folder)
    save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, folder / "diffusion_pytorch_model.safetensors")
    save_file({k: v.contiguous() for k, v in (x | taps).items()}, folder / "golden.safetensors")
    sizes = [f.stat().st_size // 1024 for f in sorted(folder.iterdir())]
    print(f"{name:22} {sizes} KiB, {len(taps)} taps", flush=True)


def kernels():
    g = torch.Generator().manual_seed(7)
    out, settings = {}, {}
    x = torch.randn(2, 5, 9, 7, generator=g)
    for name, y, rest in [
        ("pool.halve", F.avg_pool2d(x.double(), 2), dict(mode="mean", kernel=2, stride=2, padding=0)),
        ("pool.padded", F.avg_pool2d(x.double(), 3, 1, 1), dict(mode="padded_mean", kernel=3, stride=1, padding=1)),
        ("pool.inside", F.avg_pool2d(x.double(), 3, 1, 1, count_include_pad=False), dict(mode="mean", kernel=3, stride=1, padding=1)),
        ("pool.max", F.max_pool2d(x.double(), 3, 2), dict(mode="max", kernel=3, stride=2, padding=0)),
        ("pool.max_padded", F.max_pool2d(x.double(), 3, 2, 1), dict(mode="max", kernel=3, stride=2, padding=1)),
        ("pool.double", F.interpolate(x.double(), scale_factor=2.0, mode="nearest"), dict(mode="mean", kernel=1, stride=1, padding=0, enlarge=2)),
    ]:
        out |= {f"{name}/x": x.clone(), f"{name}/y": y.float()}
        settings[name] = rest
    x, time = torch.randn(2, 12, 5, 3, generator=g), torch.randn(2, 24, generator=g)
    weight, bias = 1 + 0.3 * torch.randn(12, generator=g), 0.3 * torch.randn(12, generator=g)
    for name, act in [("group_norm.gelu", F.gelu), ("group_norm.silu", F.silu), ("group_norm.none", lambda y: y)]:
        y = F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-5)
        scale, shift = time.double().chunk(2, dim=1)
        y = act(y * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
        out |= {f"{name}/x": x.clone(), f"{name}/y": y.float(), f"{name}/time": time.clone(), f"{name}/weight": weight.clone(), f"{name}/bias": bias.clone()}
        settings[name] = dict(activation=name.split(".")[1])
    save_file(out, ROOT / "kernels.safetensors", metadata={"cases": json.dumps(settings)})


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case)
    kernels()
