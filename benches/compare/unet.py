"""One call of the UNet in diffusers, with the config and the size that scumble's report names."""

import json

import torch

from timing import dtype, median


def config_path(root, model):
    folder = root / "assets" / ("emoji" if model == "emoji" else f"configs/{model}")
    return folder / "unet" / "config.json"


def inputs(config, report, device, kind):
    """A latent, a timestep, text vectors and, for SDXL, the pooled vectors and sizes, for a batch of two."""
    width, height = (side // 8 for side in report["size"])
    latent = torch.randn(2, config["in_channels"], height, width, device=device, dtype=kind)
    latent = latent.to(memory_format=torch.channels_last)
    text = torch.randn(2, 77, config["cross_attention_dim"], device=device, dtype=kind)
    timestep = torch.tensor(500, device=device)
    if config.get("addition_embed_type") != "text_time":
        return [latent, timestep, text, None, None]
    pooled = torch.randn(2, config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"])
    sizes = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]] * 2)
    return [latent, timestep, text, pooled.to(device, kind), sizes.to(device, kind)]


def times(root, report, args):
    """Pairs of what was timed and its seconds."""
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as fault:
        print(f"diffusers: not timed ({fault})")
        return
    path = config_path(root, args.model)
    if not path.exists():
        print(f"diffusers: not timed (no config at {path})")
        return
    config, kind = json.loads(path.read_text()), dtype(args.precision)
    with torch.device(args.device):
        model = UNet2DConditionModel.from_config(config).to(kind).eval()
    model = model.to(memory_format=torch.channels_last)

    def step(latent, timestep, text, pooled, sizes):
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
        return model(latent, timestep, text, added_cond_kwargs=added, return_dict=False)[0]

    made = inputs(config, report, args.device, kind)
    yield "diffusers eager", median(args.device, step, made, args.runs, budget=5.0)
    if not args.no_compile:
        compiled = torch.compile(step, dynamic=False)
        yield "diffusers compiled", median(args.device, compiled, made, args.runs, budget=5.0)
