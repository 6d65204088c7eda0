"""Goldens for src/weights: how original (single-file) layouts map to diffusers' names.

Writes
* tests/goldens/keys/ORIG_OpenCLIP_{H,bigG}_text.tsv: OpenCLIP's own names and shapes of the two real text encoders, made
  from the manifests beside them by the layout of open_clip's `TextTransformer`;
* tests/goldens/weights/{sd1,sd2,sdxl}.json: tiny models. `original` lists the names and shapes of a single file;
  its values follow from a formula (`fill`), so no weights are stored. `parts` lists what diffusers' own conversion
  functions make of that file: shape and checksum of every tensor. `configs` are the models' configs.

Run: python tools/goldens/weights.py   (torch, diffusers 0.42.1, transformers 5.23)
"""

import json
import pathlib
import zlib

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

torch.set_num_threads(1)
GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens"


def fill(name, shape):
    """Values of a stored tensor: exact in f32 and f16, different in every place of any 4096 neighbours."""
    count = 1
    for length in shape:
        count *= length
    start = zlib.crc32(name.encode())
    index = torch.arange(count, dtype=torch.int64)
    return (((index * 7919 + start) % 2048).to(torch.float32) / 64 - 16).reshape(shape)


def checksum(tensor):
    """Sum of value times a weight by position; exact in f64."""
    flat = tensor.detach().to(torch.float64).flatten()
    weight = (torch.arange(flat.numel()) * 31 + 7) % 1009
    return float((flat * weight).sum())


def open_clip_names(shapes):
    """transformers' names and shapes of a text encoder -> OpenCLIP's."""
    out = {}
    for name, shape in shapes.items():
        name = name.removeprefix("text_model.")
        if name == "embeddings.token_embedding.weight":
            out["token_embedding.weight"] = shape
        elif name == "embeddings.position_embedding.weight":
            out["positional_embedding"] = shape
        elif name.startswith("final_layer_norm."):
            out["ln_final." + name.split(".")[1]] = shape
        elif name == "text_projection.weight":
            out["text_projection"] = shape[::-1]
        else:
            _, _, layer, rest = name.split(".", 3)
            path = f"transformer.resblocks.{layer}."
            part, kind = rest.rsplit(".", 1)
            if part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                if part == "self_attn.q_proj":
                    out[f"{path}attn.in_proj_{kind}"] = [3 * shape[0], *shape[1:]]
                continue
            part = {
                "self_attn.out_proj": "attn.out_proj",
                "layer_norm1": "ln_1",
                "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc",
                "mlp.fc2": "mlp.c_proj",
            }[part]
            out[f"{path}{part}.{kind}"] = shape
    return out


def unet_names(unet):
    """diffusers' names of a UNet -> CompVis' names, counting blocks as CompVis' constructor appends them."""
    layers = unet.config.layers_per_block
    levels = len(unet.config.block_out_channels)
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    fixed = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    out = {}
    for name, tensor in unet.state_dict().items():
        layer, kind = name.rsplit(".", 1)
        if layer in fixed:
            new = fixed[layer]
        elif layer.startswith("mid_block."):
            _, what, index, rest = layer.split(".", 3)
            slot = 1 if what == "attentions" else 2 * int(index)
            new = f"middle_block.{slot}." + (rest if what == "attentions" else resnet[rest])
        else:
            side, level, what, index, rest = layer.split(".", 4)
            level, index = int(level), int(index)
            if side == "down_blocks":
                number = 1 + level * (layers + 1) + (layers if what == "downsamplers" else index)
                head = f"input_blocks.{number}"
            else:
                number = level * (layers + 1) + (layers if what == "upsamplers" else index)
                head = f"output_blocks.{number}"
            attends = "CrossAttn" in getattr(unet.config, side[: -len("blocks")] + "block_types")[level]
            if what == "resnets":
                new = f"{head}.0.{resnet[rest]}"
            elif what == "attentions":
                new = f"{head}.1.{rest}"
            elif what == "downsamplers":
                new = f"{head}.0.op"
            else:
                new = f"{head}.{2 if attends else 1}.conv"
        out[f"{new}.{kind}"] = list(tensor.shape)
    assert levels > 1
    return out


def vae_names(vae):
    """diffusers' names of a VAE -> CompVis' names."""
    levels = len(vae.config.block_out_channels)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    out = {}
    for name, tensor in vae.state_dict().items():
        layer, kind = name.rsplit(".", 1)
        shape = list(tensor.shape)
        layer = layer.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        words = layer.split(".")
        if "attentions" in words:
            part = layer.split("attentions.0.")[1]
            layer = f"{words[0]}.mid.attn_1.{attention[part]}"
            if len(shape) == 2:
                shape += [1, 1]
        elif "mid_block" in words:
            layer = f"{words[0]}.mid.block_{int(words[3]) + 1}.{words[4]}"
        elif "down_blocks" in words or "up_blocks" in words:
            down = "down_blocks" in words
            level = int(words[2]) if down else levels - 1 - int(words[2])
            head = f"{words[0]}.{'down' if down else 'up'}.{level}"
            if words[3] == "resnets":
                layer = f"{head}.block.{words[4]}.{words[5]}"
            else:
                layer = f"{head}.{'downsample' if down else 'upsample'}.conv"
        out[f"{layer}.{kind}"] = shape
    return out


def text_config(hidden, layers, open_clip, projection):
    return CLIPTextConfig(
        vocab_size=99, hidden_size=hidden, intermediate_size=2 * hidden + 32, projection_dim=projection,
        num_hidden_layers=layers, num_attention_heads=hidden // 64, max_position_embeddings=77,
        hidden_act="gelu" if open_clip else "quick_gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )


def shapes_of(model):
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def model(version):
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=0.13025 if version == "sdxl" else 0.18215,
    )
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    if version == "sd1":
        texts = [("cond_stage_model.transformer.", False, CLIPTextModel(text_config(64, 2, False, 64)))]
        unet = UNet2DConditionModel(
            sample_size=64, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64,
            down_block_types=down, up_block_types=up, attention_head_dim=8,
        )
    elif version == "sd2":
        # 24 layers are stored; the model has 23.
        texts = [("cond_stage_model.model.", True, CLIPTextModel(text_config(64, 23, True, 64)))]
        unet = UNet2DConditionModel(
            sample_size=96, block_out_channels=(64, 128), layers_per_block=2, cross_attention_dim=64,
            down_block_types=down, up_block_types=up, attention_head_dim=(1, 2), use_linear_projection=True,
            upcast_attention=True,
        )
    else:
        texts = [
            ("conditioner.embedders.0.transformer.", False, CLIPTextModel(text_config(64, 3, False, 64))),
            ("conditioner.embedders.1.model.", True, CLIPTextModelWithProjection(text_config(128, 2, True, 96))),
        ]
        unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=(32, 64, 128), layers_per_block=1, cross_attention_dim=192,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), attention_head_dim=(1, 1, 2),
            transformer_layers_per_block=(1, 2, 3), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=6 * 256 + 96,
        )
    return unet, vae, texts


def add(file, prefix, shapes):
    file.update({prefix + name: fill(prefix + name, shape) for name, shape in shapes.items()})


def described(tensors):
    return {name: [list(tensor.shape), checksum(tensor)] for name, tensor in sorted(tensors.items())}


def config_of(part):
    """A diffusers config without its private fields."""
    return {k: v for k, v in dict(part.config).items() if k == "_class_name" or not k.startswith("_")}


def tiny(version):
    torch.manual_seed(0)
    unet, vae, texts = model(version)
    file = {}
    add(file, "model.diffusion_model.", unet_names(unet))
    add(file, "first_stage_model.", vae_names(vae))
    for prefix, open_clip, text in texts:
        shapes = {name if name.startswith("text_") else f"text_model.{name}": s for name, s in shapes_of(text).items()}
        if version == "sd2":
            last = {n.replace(".22.", ".23."): s for n, s in shapes.items() if ".22." in n}
            shapes |= last | {"text_projection.weight": [64, 64]}
        add(file, prefix, open_clip_names(shapes) if open_clip else shapes)
    original = {name: list(tensor.shape) for name, tensor in file.items()}

    parts = {
        "unet": convert_ldm_unet_checkpoint(dict(file), config_of(unet)),
        "vae": convert_ldm_vae_checkpoint(dict(file), config_of(vae)),
    }
    unet.load_state_dict(parts["unet"])
    vae.load_state_dict(parts["vae"])
    configs = {"unet": config_of(unet), "vae": config_of(vae)}
    for number, (prefix, open_clip, text) in enumerate(texts):
        if open_clip:
            converted = convert_open_clip_checkpoint(text, dict(file), prefix=prefix)
        else:
            converted = convert_ldm_clip_checkpoint(dict(file))
        part = "text_encoder" if number == 0 else "text_encoder_2"
        stripped = {k.removeprefix("text_model."): v for k, v in converted.items()}
        text.load_state_dict(converted if hasattr(text, "text_model") else stripped)
        parts[part] = converted
        configs[part] = text.config.to_dict()
    return {
        "original": original,
        "parts": {name: described(tensors) for name, tensors in parts.items()},
        "configs": configs,
    }


def manifest(path):
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return {name: [int(n) for n in shape.split(",")] for name, shape in rows}


def main():
    keys = GOLDENS / "keys"
    for short, full in [("H", "OpenCLIP_H_text_24L_full_proj1024"), ("bigG", "OpenCLIP_bigG_text_32L_proj_SDXL_2")]:
        names = open_clip_names(manifest(keys / f"{full}.tsv"))
        lines = [f"{name}\t{','.join(map(str, shape))}\n" for name, shape in names.items()]
        (keys / f"ORIG_OpenCLIP_{short}_text.tsv").write_text("".join(lines))
    (GOLDENS / "weights").mkdir(exist_ok=True)
    for version in ("sd1", "sd2", "sdxl"):
        text = json.dumps(tiny(version), indent=0, separators=(",", ":"), default=str)
        (GOLDENS / "weights" / f"{version}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
