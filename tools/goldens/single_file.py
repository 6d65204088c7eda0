"""Writes a diffusers pipeline as one file with the key names of the original repositories (CompVis, Stability's sgm).

The names follow CompVis/stable-diffusion's `openaimodel.py` and `model.py`, and open_clip's `transformer.py`; the
result is checked by giving it to diffusers' own converters (`check_round_trip`).
"""
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def read_part(folder):
    """All tensors of a part, from one file or its shards."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def unet_prefixes(names, levels):
    """diffusers module prefix -> original prefix, for the blocks that the names show."""
    pairs = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    pairs |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    pairs |= {"class_embedding": "label_emb", "conv_norm_out": "out.0", "conv_out": "out.2"}
    pairs |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2"}

    def has(prefix):
        return any(n.startswith(prefix + ".") for n in names)

    number = 1
    for b in range(levels):
        j = 0
        while has(f"down_blocks.{b}.resnets.{j}"):
            pairs[f"down_blocks.{b}.resnets.{j}"] = f"input_blocks.{number}.0"
            pairs[f"down_blocks.{b}.attentions.{j}"] = f"input_blocks.{number}.1"
            number, j = number + 1, j + 1
        if has(f"down_blocks.{b}.downsamplers.0"):
            pairs[f"down_blocks.{b}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for b in range(levels):
        j = 0
        while has(f"up_blocks.{b}.resnets.{j}"):
            pairs[f"up_blocks.{b}.resnets.{j}"] = f"output_blocks.{number}.0"
            pairs[f"up_blocks.{b}.attentions.{j}"] = f"output_blocks.{number}.1"
            number, j = number + 1, j + 1
        place = 2 if has(f"up_blocks.{b}.attentions.0") else 1
        pairs[f"up_blocks.{b}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    return pairs


def unet_name(name, pairs):
    prefix = max((p for p in pairs if name.startswith(p + ".")), key=len)
    rest = name[len(prefix) + 1 :]
    if ".resnets." in f".{prefix}.":
        part, _, tail = rest.partition(".")
        rest = f"{RESNET[part]}.{tail}"
    return f"{pairs[prefix]}.{rest}"


def convert_unet(tensors, levels):
    pairs = unet_prefixes(tensors, levels)
    return {unet_name(k, pairs): v for k, v in tensors.items()}


def convert_vae(tensors, levels):
    out = {}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, value in tensors.items():
        side, _, rest = name.partition(".")
        parts = rest.split(".")
        if side in ("encoder", "decoder") and parts[0] in ("down_blocks", "up_blocks"):
            level = int(parts[1]) if side == "encoder" else levels - 1 - int(parts[1])
            way = "down" if side == "encoder" else "up"
            if parts[2] == "resnets":
                tail = ".".join(parts[4:]).replace("conv_shortcut", "nin_shortcut")
                name = f"{side}.{way}.{level}.block.{parts[3]}.{tail}"
            else:
                name = f"{side}.{way}.{level}.{way}sample.conv.{parts[-1]}"
        elif parts[0] == "mid_block" and parts[1] == "resnets":
            tail = ".".join(parts[3:]).replace("conv_shortcut", "nin_shortcut")
            name = f"{side}.mid.block_{int(parts[2]) + 1}.{tail}"
        elif parts[0] == "mid_block":
            key = ".".join(parts[3:-1])
            name = f"{side}.mid.attn_1.{attention[key]}.{parts[-1]}"
            if key != "group_norm" and parts[-1] == "weight":
                value = value[:, :, None, None]
        else:
            name = name.replace("conv_norm_out", "norm_out")
        out[name] = value.contiguous()
    return out


def convert_open_clip(tensors, extra_layer):
    """HF CLIP text names to open_clip's; `extra_layer` adds the last block that SD 2 stores but does not use."""
    text = {k.removeprefix("text_model."): v for k, v in tensors.items()}
    out = {"positional_embedding": text["embeddings.position_embedding.weight"], "token_embedding.weight": text["embeddings.token_embedding.weight"]}
    layers = 1 + max(int(k.split(".")[2]) for k in text if k.startswith("encoder.layers."))
    for end in ("weight", "bias"):
        out[f"ln_final.{end}"] = text[f"final_layer_norm.{end}"]
        for i in range(layers):
            old, new = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
            out[new + f"attn.in_proj_{end}"] = torch.cat([text[f"{old}self_attn.{p}_proj.{end}"] for p in "qkv"])
            out[new + f"attn.out_proj.{end}"] = text[f"{old}self_attn.out_proj.{end}"]
            for a, b in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                out[f"{new}{b}.{end}"] = text[f"{old}{a}.{end}"]
    width = out["positional_embedding"].shape[1]
    out["logit_scale"] = torch.tensor(4.6052)
    if extra_layer:
        last = f"transformer.resblocks.{layers - 1}."
        out |= {k.replace(last, f"transformer.resblocks.{layers}."): v * 0.5 for k, v in list(out.items()) if k.startswith(last)}
        out["text_projection"] = torch.eye(width, dtype=out["positional_embedding"].dtype)
    else:
        out["text_projection"] = text["text_projection.weight"].T.contiguous()
    return out


def prefixed(prefix, tensors):
    return {prefix + k: v for k, v in tensors.items()}


def write_single_file(folder, path, kind):
    """`kind` is sd1, sd2 or sdxl; writes `path` in the dtype of the pipeline's files."""
    folder = Path(folder)
    unet_config = json.loads((folder / "unet" / "config.json").read_text())
    vae_config = json.loads((folder / "vae" / "config.json").read_text())
    out = prefixed("model.diffusion_model.", convert_unet(read_part(folder / "unet"), len(unet_config["block_out_channels"])))
    out |= prefixed("first_stage_model.", convert_vae(read_part(folder / "vae"), len(vae_config["block_out_channels"])))
    text = read_part(folder / "text_encoder")
    text = {k if k.startswith("text_model.") else "text_model." + k: v for k, v in text.items()}
    positions = torch.arange(77).unsqueeze(0)
    if kind == "sd1":
        out |= prefixed("cond_stage_model.transformer.", text)
        out["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    elif kind == "sd2":
        out |= prefixed("cond_stage_model.model.", convert_open_clip(text, extra_layer=True))
    else:
        out |= prefixed("conditioner.embedders.0.transformer.", text)
        out["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = positions
        out |= prefixed("conditioner.embedders.1.model.", convert_open_clip(read_part(folder / "text_encoder_2"), extra_layer=False))
    if kind != "sdxl":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        products = torch.cumprod(1 - betas, 0)
        out |= dict(betas=betas.float(), alphas_cumprod=products.float(), sqrt_alphas_cumprod=products.sqrt().float())
        out["model_ema.decay"] = torch.tensor(0.9999)
        out["model_ema.num_updates"] = torch.tensor(7, dtype=torch.int32)
    save_file({k: v.clone().contiguous() for k, v in out.items()}, path, metadata={"format": "pt"})


def check_round_trip(folder, path, kind):
    """Gives the file to diffusers' converters: every tensor of UNet, VAE and OpenCLIP must come back under its name."""
    import diffusers
    import transformers
    from diffusers.loaders import single_file_utils as reference

    folder, checkpoint = Path(folder), load_file(path)
    for part, convert in (("unet", reference.convert_ldm_unet_checkpoint), ("vae", reference.convert_ldm_vae_checkpoint)):
        config = json.loads((folder / part / "config.json").read_text())
        want, got = read_part(folder / part), convert(dict(checkpoint), config)
        assert want.keys() == got.keys(), (part, want.keys() ^ got.keys())
        for k, v in want.items():
            assert torch.equal(v, got[k].reshape(v.shape)), f"{diffusers.__version__}: {part}: {k}"
    if kind == "sd1":
        return
    prefix, part = ("cond_stage_model.model.", "text_encoder") if kind == "sd2" else ("conditioner.embedders.1.model.", "text_encoder_2")
    config = json.loads((folder / part / "config.json").read_text())
    width = torch.nn.Module()
    width.config = transformers.CLIPTextConfig(hidden_size=config["hidden_size"])
    got = reference.convert_open_clip_checkpoint(width, dict(checkpoint), prefix=prefix)
    for k, v in read_part(folder / part).items():
        k = k if k.startswith(("text_model.", "text_projection")) else "text_model." + k
        assert torch.equal(v, got[k]), f"{diffusers.__version__}: {part}: {k}"


__all__ = ["write_single_file", "check_round_trip"]
