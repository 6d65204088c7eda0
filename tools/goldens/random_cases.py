"""Random pipelines and drawings for tools/accept.py, over the space of configurations that scumble promises."""
import random

from bpe import CLIP_MERGES, END
from cases import LONG, UNICODE

WORDS = "red green apple cat dog house forest river oil painting photo of a the on table night sky bright very old".split()
SAMPLERS = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", dict(algorithm_type="dpmsolver++")),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", dict(algorithm_type="sde-dpmsolver++")),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
SPACINGS = ("leading", "linspace", "trailing")
SIGMA_SCHEDULES = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
ZERO_SNR = ("ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm")


def chance(r, p):
    return r.random() < p


def prompt(r, kind=None):
    kind = kind or r.choice(["short", "short", "short", "long", "unicode", "odd"])
    if kind == "long":
        return LONG if chance(r, 0.5) else " ".join(r.choice(WORDS) for _ in range(r.randint(60, 120)))
    if kind == "unicode":
        return UNICODE if chance(r, 0.5) else "".join(r.choice("äéßñçøЖд東京🍎🚀…“”½ ﬁ Σς İ ー\u200d\u0301") for _ in range(30))
    if kind == "odd":
        return r.choice(["", "  spaces\tand\nlines  ", "don't we'll I'm 123 4x4 a.b,c!?", "UPPER Case <|endoftext|> tail", "((weights:1.2)) [x] {y}", "a" * 90])
    return " ".join(r.choice(WORDS) for _ in range(r.randint(1, 12)))


def head_counts(r, channels):
    """For each width a count of heads that divides it, head width at least 3."""
    return [r.choice([h for h in range(1, 9) if c % h == 0 and c // h >= 3]) for c in channels]


def unet(r, kind, context, pooled, exotic):
    groups = r.choice([1, 2, 2, 3, 4, 4, 5, 6, 8])
    levels = r.choice([1, 2, 2, 3, 3, 4])
    channels = [groups * r.choice([m for m in range(1, 49) if 8 <= groups * m <= 40]) for _ in range(levels)]
    cross = [chance(r, 0.7) for _ in channels]
    config = dict(sample_size=r.choice([4, 6, 8]), block_out_channels=channels, norm_num_groups=groups, cross_attention_dim=context)
    config["down_block_types"] = ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross]
    config["up_block_types"] = ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)]
    config["layers_per_block"] = r.choice([1, 1, 2])
    heads = head_counts(r, channels)
    common = [h for h in (1, 2, 3, 4, 8) if all(c % h == 0 and c // h >= 3 for c in channels)]
    config["attention_head_dim"] = r.choice(common) if chance(r, 0.5) else heads
    config["use_linear_projection"] = chance(r, 0.5)
    layers = r.choice([1, 1, 2]) if chance(r, 0.6) else [r.choice([1, 2, 3]) for _ in channels]
    config["transformer_layers_per_block"] = layers
    config["upcast_attention"] = chance(r, 0.2)
    if chance(r, exotic):
        config["norm_eps"] = 1e-6
    if chance(r, exotic):
        config["flip_sin_to_cos"], config["freq_shift"] = False, 1
    if chance(r, exotic) and levels > 1:
        config["layers_per_block"] = [r.choice([1, 2]) for _ in channels]
    if kind == "lcm":
        config["time_cond_proj_dim"] = r.choice([8, 16, 21, 256])
    if kind == "sdxl":
        width = r.choice([4, 6, 8, 10])
        config |= dict(addition_embed_type="text_time", addition_time_embed_dim=width)
        config["projection_class_embeddings_input_dim"] = 6 * width + pooled
    return config


def vae(r, exotic):
    groups = r.choice([1, 2, 3, 4, 5])
    levels = r.choice([2, 3, 3, 4, 4])
    channels = [groups * r.choice([m for m in range(1, 25) if 4 <= groups * m <= 24]) for _ in range(levels)]
    config = dict(block_out_channels=channels, norm_num_groups=groups, layers_per_block=r.choice([1, 1, 2]), latent_channels=4, sample_size=32)
    config["down_block_types"] = ["DownEncoderBlock2D"] * levels
    config["up_block_types"] = ["UpDecoderBlock2D"] * levels
    config["scaling_factor"] = r.choice([0.18215, 0.13025, 0.5, 1.0])
    config["force_upcast"] = chance(r, 0.5)
    if chance(r, exotic):
        config["mid_block_add_attention"] = False
    if chance(r, exotic):
        config["use_quant_conv"] = config["use_post_quant_conv"] = False
    return config


def text(r, layers, act, projection=None):
    heads, width = r.choice([1, 2, 3, 4, 5]), r.choice([4, 5, 6, 8, 10])
    hidden = heads * width
    config = dict(hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers, hidden_act=act)
    config["intermediate_size"] = r.choice([2 * hidden + 1, 4 * hidden, 3 * hidden])
    return config | dict(projection_dim=projection or hidden)


def scheduler(r, kind, exotic):
    """(short name, class, arguments) of a scheduler_config.json."""
    name = "lcm" if kind == "lcm" else r.choice(list(SAMPLERS))
    cls, extra = SAMPLERS[name]
    betas = r.choice(["scaled_linear"] * 4 + ["linear", "squaredcos_cap_v2"])
    args = dict(beta_start=0.00085, beta_end=0.012, beta_schedule=betas, **extra)
    predictions = ["epsilon", "epsilon", "v_prediction"]
    if name in ("ddim", "ddpm", "euler", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm"):
        predictions.append("sample")
    args["prediction_type"] = r.choice(predictions)
    if args["prediction_type"] == "epsilon" and betas == "squaredcos_cap_v2":
        # Its last alpha is 2e-9: a random prediction would be blown up 20,000 times, which no trained model does.
        args["beta_schedule"] = "linear"
    if name != "lcm":
        args["timestep_spacing"] = r.choice(SPACINGS)
    args["steps_offset"] = r.choice([0, 1, 1])
    if name in ("ddim", "ddpm", "lcm"):
        args["clip_sample"] = False
    if name in ("ddim", "pndm", "lcm"):
        args["set_alpha_to_one"] = chance(r, 0.5)
    if name == "pndm":
        args["skip_prk_steps"] = not chance(r, 0.2)
        args.pop("prediction_type") if args["prediction_type"] == "sample" else None
    if name == "ddpm" and chance(r, exotic):
        args["variance_type"] = r.choice(["fixed_small_log", "fixed_large"])
    if name in SIGMA_SCHEDULES and chance(r, 0.35):
        args[r.choice(["use_karras_sigmas", "use_karras_sigmas", "use_exponential_sigmas"])] = True
    if name in ZERO_SNR and args["prediction_type"] != "epsilon" and chance(r, 0.35):
        args |= dict(rescale_betas_zero_snr=True)
        if name not in ("lcm",):
            args["timestep_spacing"] = "trailing"
    if name.startswith("dpmpp") and chance(r, exotic):
        args |= r.choice([dict(solver_type="heun"), dict(solver_order=1), dict(euler_at_final=True), dict(lower_order_final=False, final_sigmas_type="sigma_min")])
        if not name.endswith("sde") and chance(r, 0.3):
            args |= dict(solver_order=3)
    if name == "unipc" and chance(r, exotic):
        args |= r.choice([dict(solver_type="bh1"), dict(solver_order=1), dict(solver_order=3), dict(predict_x0=False), dict(disable_corrector=[0])])
    return name, cls, args


def swap(r, spec):
    """`--sampler` and `--schedule` of a run, with the arguments that from_config gets in diffusers."""
    name = r.choice(list(SAMPLERS))
    cls, extra = SAMPLERS[name]
    prediction = spec["scheduler"][1].get("prediction_type", "epsilon")
    if prediction == "sample" and name in ("pndm", "euler_a", "heun"):
        name, (cls, extra) = "ddim", SAMPLERS["ddim"]
    schedule, more = None, {}
    if chance(r, 0.35) and name != "lcm":
        options = list(SPACINGS) + ["sgm_uniform"] + (["karras", "exponential"] if name in SIGMA_SCHEDULES else [])
        schedule = r.choice(options)
        if schedule in ("karras", "exponential"):
            more = {f"use_{k}_sigmas": k == schedule for k in ("karras", "exponential")}
        else:
            # A word for strides means them, whatever curve the model's config has.
            more = {f"use_{k}_sigmas": False for k in ("karras", "exponential") if name in SIGMA_SCHEDULES}
            more["timestep_spacing"] = "trailing" if schedule == "sgm_uniform" else schedule
    return dict(sampler=name, schedule=schedule, cls=cls, arguments=extra | more)


def draw(seed, index, exotic):
    """(spec, case, swap or None) number `index` of run `seed`."""
    r = random.Random(f"{seed}/{index}")
    kind = r.choice(["sd1", "sd1", "sd2", "sdxl", "sdxl", "lcm"])
    act = "gelu" if kind == "sd2" else "quick_gelu"
    spec = dict(kind="sdxl" if kind == "sdxl" else "sd", seed=r.randrange(10**6), text=text(r, r.choice([1, 2, 3]), act))
    if kind == "sdxl":
        spec["text"]["num_hidden_layers"] = r.choice([1, 2, 3])
        spec["text_2"] = text(r, r.choice([1, 2, 3]), "gelu", r.choice([7, 10, 16]))
        if chance(r, 0.3):
            spec["text"]["eos_token_id"] = 2
        if chance(r, 0.3):
            spec["text_2"]["eos_token_id"] = 2
        spec["force_zeros"] = chance(r, 0.7)
        spec["tokenizer_2"] = dict(pad="!")
    context = spec["text"]["hidden_size"] + spec.get("text_2", {}).get("hidden_size", 0)
    spec |= dict(unet=unet(r, kind, context, spec.get("text_2", {}).get("projection_dim"), exotic), vae=vae(r, exotic))
    name, cls, args = scheduler(r, kind, exotic)
    spec |= dict(scheduler=(cls, args), sparse_scheduler=chance(r, 0.3))
    merges = CLIP_MERGES if chance(r, 0.2) else r.choice([0, 30, 300, 3000])
    pad = "!" if kind == "sd2" else END
    spec["tokenizer"] = dict(merge_count=merges, pad=pad, style=r.choice(["files", "json", "both"]))
    if chance(r, exotic):
        spec["tokenizer"]["length"] = spec["text"]["max_position_embeddings"] = 40
        if kind == "sdxl":
            spec["text_2"]["max_position_embeddings"] = 40
    spec |= dict(dtype=r.choice(["f32", "f16", "f16", "bf16"]), shards=r.choice([1, 1, 1, 2, 3]), text_prefix=chance(r, 0.5))
    spec["variant"] = "fp16" if spec["dtype"] == "f16" and chance(r, 0.4) else None
    factor = 2 ** (len(spec["vae"]["block_out_channels"]) - 1)
    step = 8
    while True:
        height, width = step * r.randint(1, 12), step * r.randint(1, 12)
        if height * width <= 64 * 96 and height * width // factor**2 <= 640:
            break
    case = dict(prompt=prompt(r), height=height, width=width, steps=r.randint(2 if name == "pndm" else 1, 6), seed=r.choice([0, 1, 42, 2**32 - 1, r.randrange(2**32)]))
    case["negative_prompt"] = prompt(r) if chance(r, 0.5) else None
    case["guidance"] = r.choice([1.0, 0.0, 2.0, 5.0, 7.5, 7.5, 7.5]) if kind != "lcm" else r.choice([1.5, 4.0, 8.0])
    if chance(r, 0.15):
        case["guidance_rescale"] = 0.7
    if chance(r, 0.15):
        case["clip_skip"] = r.randint(0, min(part["num_hidden_layers"] for part in (spec["text"], spec.get("text_2", spec["text"]))) - 1)
    changed = swap(r, spec) if chance(r, 0.4) and kind != "lcm" else None
    if (changed or {}).get("sampler") == "pndm" or name == "pndm":
        case["steps"] = max(case["steps"], 4)
    return spec, case, changed
