"""Tiny Stable Diffusion pipelines with random weights, and what diffusers computes with them.

A *spec* is a plain dictionary: `kind` (`sd` or `sdxl`), `unet`, `vae`, `text`, `text_2` (constructor arguments of the
diffusers and transformers classes), `scheduler` (class name, arguments), `tokenizer` (arguments of
`bpe.write_tokenizer`), `dtype` of the files and `seed` of the weights. A *case* says what to draw: prompt, negative
prompt, size, steps, guidance and so on.
"""
import hashlib
import json
import sys
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

import bpe

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
CALL_DEFAULTS = dict(negative_prompt=None, guidance_rescale=0.0, clip_skip=None, eta=0.0)

torch.set_num_threads(1)
warnings.simplefilter("ignore")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def generator_for(name, seed):
    """A generator that depends on the tensor's name and the seed only, not on the order of creation."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def randomise(module, seed, gain=1.0):
    """Draws every parameter: norm weights near 1, biases, matrices of variance gain^2 / fan-in."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            n = torch.randn(p.shape, generator=generator_for(name, seed))
            if p.ndim == 1:
                p.copy_(1 + 0.2 * n if name.endswith("weight") else 0.2 * n)
            elif "embedding.weight" in name and "time_embedding" not in name:
                p.copy_(0.7 * n)
            else:
                p.copy_(n * gain / p[0].numel() ** 0.5)


def text_config(arguments, merge_count):
    size = 514 + merge_count
    ids = dict(vocab_size=size, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1)
    return transformers.CLIPTextConfig(**(ids | dict(max_position_embeddings=77) | arguments))


def calibrate(unet, vae, spec):
    """Rescales the two output convolutions: predictions of spread 1, pictures of good contrast."""
    g = torch.Generator().manual_seed(spec["seed"] + 1)
    h, w = spec.get("calibrate", (16, 16))
    x = torch.randn(2, unet.config.in_channels, h, w, generator=g)
    kwargs = {}
    if spec["kind"] == "sdxl":
        kwargs["added_cond_kwargs"] = dict(
            text_embeds=torch.randn(2, spec["text_2"]["projection_dim"], generator=g), time_ids=torch.full((2, 6), 64.0)
        )
    if unet.config.time_cond_proj_dim:
        kwargs["timestep_cond"] = torch.randn(2, unet.config.time_cond_proj_dim, generator=g)
    context = torch.randn(2, 77, unet.config.cross_attention_dim, generator=g)
    with torch.no_grad():
        out = unet(x, 500, encoder_hidden_states=context, **kwargs).sample
        unet.conv_out.weight /= out.std()
        unet.conv_out.bias *= 0.5
        if vae.config.use_post_quant_conv:
            vae.post_quant_conv.weight *= 0.3 * vae.config.scaling_factor
        out = vae.decode(x / vae.config.scaling_factor).sample
        mean, conv = out.mean((0, 2, 3)), vae.decoder.conv_out
        scale = 0.38 / out.std()
        conv.weight *= scale
        conv.bias.copy_((conv.bias - mean) * scale + torch.tensor([0.1, -0.1, 0.05]))


def save_weights(folder, stem, tensors, shards=1, variant=None):
    """One safetensors file, or several with an index, named as diffusers and transformers name them."""
    suffix = f".{variant}" if variant else ""
    if shards == 1:
        save_file(tensors, folder / f"{stem}{suffix}.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        part = names[i::shards]
        number = f"-{i + 1:05d}-of-{shards:05d}"
        file = f"{stem}{suffix}{number}.safetensors"
        save_file({k: tensors[k] for k in part}, folder / file, metadata={"format": "pt"})
        weight_map |= {k: file for k in part}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = dict(metadata=dict(total_size=size), weight_map=dict(sorted(weight_map.items())))
    (folder / f"{stem}.safetensors.index{suffix}.json").write_text(json.dumps(index, indent=1))


def save_part(module, folder, stem, spec, prefix=""):
    folder.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES[spec.get("dtype", "f16")]
    tensors = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("position_ids"):
            continue
        name = prefix + name if prefix and not name.startswith((prefix, "text_projection")) else name
        tensors[name] = tensor.to(dtype).contiguous()
    save_weights(folder, stem, tensors, spec.get("shards", 1), spec.get("variant"))


def save_text(module, folder, spec):
    architecture = type(module).__name__
    save_part(module, folder, "model", spec, prefix="text_model." if spec.get("text_prefix", True) else "")
    config = module.config.to_diff_dict()
    config |= dict(architectures=[architecture], model_type="clip_text_model")
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "projection_dim"):
        config[key] = getattr(module.config, key)
    for key in ("hidden_act", "layer_norm_eps", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
        config[key] = getattr(module.config, key)
    config.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))


def build(spec, folder):
    """Writes the pipeline of `spec` to `folder` in diffusers layout."""
    folder = Path(folder)
    sdxl = spec["kind"] == "sdxl"
    unet = diffusers.UNet2DConditionModel(**spec["unet"]).eval()
    vae = diffusers.AutoencoderKL(**spec["vae"]).eval()
    towers = {"text_encoder": transformers.CLIPTextModel(text_config(spec["text"], spec["tokenizer"]["merge_count"])).eval()}
    if sdxl:
        config = text_config(spec["text_2"], spec["tokenizer"]["merge_count"])
        towers["text_encoder_2"] = transformers.CLIPTextModelWithProjection(config).eval()
    for i, (name, module) in enumerate({"unet": unet, "vae": vae, **towers}.items()):
        randomise(module, spec["seed"] * 10 + i, spec.get("gain", 1.0))
    calibrate(unet, vae, spec)
    for name, module in {"unet": unet, "vae": vae}.items():
        save_part(module, folder / name, "diffusion_pytorch_model", spec)
        module.save_config(folder / name)
    for name, module in towers.items():
        save_text(module, folder / name, spec)
    bpe.write_tokenizer(folder / "tokenizer", **spec["tokenizer"])
    if sdxl:
        bpe.write_tokenizer(folder / "tokenizer_2", **(spec["tokenizer"] | spec.get("tokenizer_2", {})))
    name, arguments = spec["scheduler"]
    scheduler = getattr(diffusers, name)(**arguments)
    scheduler.save_config(folder / "scheduler")
    if spec.get("sparse_scheduler") or spec.get("scheduler_extra"):
        sparse = {"_class_name": name, "_diffusers_version": "0.15.0", **arguments, **spec.get("scheduler_extra", {})}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(sparse, indent=1))
    (folder / "model_index.json").write_text(json.dumps(model_index(spec), indent=1))


def model_index(spec):
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
    clip = ["transformers", "CLIPTokenizer"]
    if spec["kind"] == "sdxl":
        index["_class_name"] = "StableDiffusionXLPipeline"
        index["force_zeros_for_empty_prompt"] = spec.get("force_zeros", True)
        index |= dict(text_encoder_2=["transformers", "CLIPTextModelWithProjection"], tokenizer_2=clip)
    else:
        index |= dict(requires_safety_checker=False, safety_checker=[None, None])
    index |= dict(feature_extractor=[None, None], image_encoder=[None, None], tokenizer=clip)
    index |= dict(scheduler=["diffusers", spec["scheduler"][0]], text_encoder=["transformers", "CLIPTextModel"])
    return index | dict(unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"])


def load(folder, variant=None, dtype=torch.float32):
    """The pipeline that diffusers reads from `folder`, its stored weights widened to `dtype`."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder), torch_dtype=dtype, variant=variant)
    pipe.set_progress_bar_config(disable=True)
    if not hasattr(pipe.text_encoder, "text_model"):
        # diffusers 0.42 reads `text_model.final_layer_norm` for clip_skip, a level that transformers 5 dropped here.
        pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    return pipe


class Recorder:
    """Collects module outputs (forward hooks), solver noise and latents while a pipeline runs."""

    def __init__(self, pipe):
        self.pipe, self.tensors, self.handles, self.noise = pipe, {}, [], []

    def put(self, name, value):
        if name not in self.tensors:
            self.tensors[name] = value.detach().clone()

    def tap(self, module, name):
        def hook(_, __, output):
            while isinstance(output, (tuple, list)):
                output = output[0]
            self.put(name, output if torch.is_tensor(output) else output[0])

        self.handles.append(module.register_forward_hook(hook))

    def tap_unet(self):
        unet = self.pipe.unet
        for name, module in unet.named_modules():
            parts = name.split(".")
            first = all(p in ("0", "down_blocks", "mid_block", "resnets", "attentions", "transformer_blocks", "attn1", "attn2", "ff") for p in parts)
            block = len(parts) == 2 and parts[0] in ("down_blocks", "up_blocks")
            if name in ("conv_in", "time_embedding", "add_embedding", "mid_block") or block:
                self.tap(module, f"unet.{name}")
            elif first and parts[-1] in ("attn1", "attn2", "ff"):
                self.tap(module, f"unet.{name}")
            elif first and len(parts) == 4 and parts[2] in ("resnets", "attentions"):
                self.tap(module, f"unet.{name}")
            elif name in ("down_blocks.1.attentions.0", "up_blocks.0.resnets.0"):
                self.tap(module, f"unet.{name}")

        def inputs(_, args, kwargs):
            self.put("unet.sample", args[0])
            self.put("unet.timestep", torch.as_tensor(args[1]).reshape(1).to(torch.float32))
            self.put("unet.encoder_hidden_states", kwargs["encoder_hidden_states"])
            for key in ("text_embeds", "time_ids"):
                if kwargs.get("added_cond_kwargs"):
                    self.put(f"unet.{key}", kwargs["added_cond_kwargs"][key])
            if kwargs.get("timestep_cond") is not None:
                self.put("unet.timestep_cond", kwargs["timestep_cond"])

        self.handles.append(unet.register_forward_pre_hook(inputs, with_kwargs=True))
        self.tap(unet, "unet")

    def tap_vae(self):
        vae = self.pipe.vae
        if vae.config.use_post_quant_conv:
            self.tap(vae.post_quant_conv, "vae.post_quant_conv")
        self.tap(vae.decoder.conv_in, "vae.decoder.conv_in")
        self.tap(vae.decoder.mid_block, "vae.decoder.mid_block")
        for i, block in enumerate(vae.decoder.up_blocks):
            self.tap(block, f"vae.decoder.up_blocks.{i}")
        self.tap(vae.decoder, "vae.decoder")

    def tap_text(self):
        for name in ("text_encoder", "text_encoder_2"):
            module = getattr(self.pipe, name, None)
            if module is None:
                continue
            inner = getattr(module, "text_model", module)
            self.tap(inner.embeddings, f"{name}.text_model.embeddings")
            for i, layer in enumerate(inner.encoder.layers):
                self.tap(layer, f"{name}.text_model.encoder.layers.{i}")

    def watch_noise(self):
        """Wraps every `randn_tensor` that diffusers' modules imported; draws in f32 whatever the pipeline's type."""
        self.originals = []
        for module in list(sys.modules.values()):
            original = module.__dict__.get("randn_tensor") if hasattr(module, "__dict__") else None
            if original is not None and module.__name__.startswith("diffusers."):
                self.originals.append((module, original))
                module.randn_tensor = self._recording(original)

    def _recording(self, original):
        def draw(*args, **kwargs):
            dtype = kwargs.get("dtype") or torch.float32
            value = original(*args, **(kwargs | dict(dtype=torch.float32)))
            self.noise.append(value.detach().clone())
            return value.to(dtype)

        return draw

    def close(self):
        for handle in self.handles:
            handle.remove()
        for module, original in self.originals:
            module.randn_tensor = original


def text_outputs(pipe, case):
    """Token ids and embeddings, named as `scumble --dump` names them."""
    out = {}
    guided = pipe.unet.config.time_cond_proj_dim is None and case["guidance"] > 1
    kwargs = dict(device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=guided, clip_skip=case.get("clip_skip"))
    result = pipe.encode_prompt(prompt=case["prompt"], negative_prompt=case.get("negative_prompt"), **kwargs)
    names = ["text_embeddings", "negative_text_embeddings", "pooled_text_embeddings", "negative_pooled_text_embeddings"]
    out |= {k: v for k, v in zip(names, result) if v is not None}
    for suffix in ("", "_2"):
        tokenizer = getattr(pipe, "tokenizer" + suffix, None)
        if tokenizer is None:
            continue
        for name, text in (("tokens", case["prompt"]), ("negative_tokens", case.get("negative_prompt") or "")):
            ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
            out[name + suffix] = torch.tensor(ids, dtype=torch.int32)
    return out


def run(pipe, case, taps=()):
    """Runs diffusers on `case`; returns named tensors (`latents.0`.., `noise`, `image`, ... and the taps asked for)."""
    case = CALL_DEFAULTS | case
    recorder = Recorder(pipe)
    out = {k: v for k, v in text_outputs(pipe, case).items()}
    for part in taps:
        getattr(recorder, f"tap_{part}")()
    recorder.watch_noise()
    latents = []

    def keep(_, __, ___, kwargs):
        latents.append(kwargs["latents"].detach().clone())
        return {}

    kwargs = dict(num_inference_steps=case["steps"], guidance_scale=case["guidance"], height=case["height"], width=case["width"])
    kwargs |= {k: case[k] for k in ("prompt", "negative_prompt", "guidance_rescale", "clip_skip", "eta")}
    try:
        generator = torch.Generator().manual_seed(case["seed"])
        image = pipe(**kwargs, generator=generator, callback_on_step_end=keep).images[0]
    finally:
        recorder.close()
    noise = torch.Generator().manual_seed(case["seed"])
    out["noise"] = torch.randn(recorder.noise[0].shape, generator=noise)
    assert torch.equal(out["noise"], recorder.noise[0])
    out |= {f"noise.{i}": n for i, n in enumerate(recorder.noise[1:])}
    out |= {f"latents.{i}": x for i, x in enumerate(latents)}
    out["timesteps"] = torch.as_tensor(pipe.scheduler.timesteps).to(torch.float32)
    if getattr(pipe.scheduler, "sigmas", None) is not None:
        out["sigmas"] = torch.as_tensor(pipe.scheduler.sigmas).to(torch.float32)
    out["image"] = torch.from_numpy(np.asarray(image).copy())
    out |= recorder.tensors
    return {k: v.contiguous() for k, v in out.items()}


def check_sane(out, name):
    """Fails on NaN, on a flat or a saturated picture."""
    for key, value in out.items():
        assert torch.isfinite(value.float()).all(), f"{name}: {key} is not finite"
    picture = out["image"].float()
    spread, clipped = picture.std().item(), ((picture == 0) | (picture == 255)).float().mean().item()
    assert spread > 20, f"{name}: flat picture, spread {spread:.1f}"
    assert clipped < 0.2, f"{name}: {100 * clipped:.0f} % of the values are clipped"
    return spread, clipped


__all__ = ["build", "load", "run", "check_sane", "load_file", "save_file"]
