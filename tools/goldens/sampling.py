"""Runs diffusers' schedulers with a fixed stand-in for the model, for tests/sampling.rs: python tools/goldens/sampling.py

Each case holds the config, the call and what came of it: timesteps, init_noise_sigma, three elements of the latent after
each step (or each `every`th of a long run) and the whole last latent (sixteen values). A case that diffusers refuses, or in which it computes NaN, holds
`error` instead.
"""

import itertools
import json
import sys
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
diffusers.logging.set_verbosity_error()
OUT = Path(__file__).resolve().parents[2] / "tests/goldens/sampling"

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CURVES = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}


def algorithm(word):
    return {"dpmpp_2m": {"algorithm_type": "dpmsolver++"}, "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"}}.get(word, {})


def model(x, t):
    return torch.from_numpy((0.5 * np.sin(x.numpy().astype(np.float64) + float(t) / 700.0)).astype(np.float32))


def variance(x, t):
    """The second half of a model's channels, positive, so that it may be a variance itself."""
    return torch.from_numpy((0.5 + 0.4 * np.sin(2 * x.numpy().astype(np.float64) + float(t) / 300.0)).astype(np.float32))


def digits(values):
    return [float(f"{float(v):.9g}") for v in values]


def run(scheduler, steps=None, custom=None, eta=0.0, seed=7):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, 1, 4, 4), generator=generator)
    if custom is None:
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(timesteps=custom)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    latents = latents * scheduler.init_noise_sigma
    kwargs = {}
    parameters = scheduler.step.__code__.co_varnames
    if "generator" in parameters:
        kwargs["generator"] = generator
    if "eta" in parameters:
        kwargs["eta"] = eta
    trace = []
    learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
    for i, t in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(latents, t), t)
        if learned:
            output = torch.cat([output, variance(latents, t)], dim=1)
        if isinstance(scheduler, diffusers.UnCLIPScheduler):
            # As the unCLIP pipeline passes it.
            kwargs["prev_timestep"] = scheduler.timesteps[i + 1] if i + 1 < len(scheduler.timesteps) else None
        latents = scheduler.step(output, t, latents, **kwargs, return_dict=False)[0]
        trace.append(digits(latents.flatten()[[0, 5, 11]]))
        if not torch.isfinite(latents).all():
            return {"error": "not finite"}
    every = 1 + len(trace) // 40
    return {
        "timesteps": digits(scheduler.timesteps),
        "init_noise_sigma": digits([scheduler.init_noise_sigma])[0],
        "every": every,
        "trace": trace[::every],
        "last": digits(latents.flatten()),
    }


def case(config, steps=None, custom=None, eta=0.0, swap=None, schedule=None, pipeline=False):
    entry = {"config": config}
    for key, value in (("steps", steps), ("custom", custom), ("eta", eta), ("swap", swap), ("schedule", schedule), ("pipeline", pipeline)):
        if value:
            entry[key] = value
    try:
        scheduler = getattr(diffusers, config["_class_name"]).from_config(dict(config))
        if pipeline:
            parts = dict.fromkeys(["vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"])
            scheduler = diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler, requires_safety_checker=False).scheduler
        if swap:
            overrides = algorithm(swap)
            scheduler = getattr(diffusers, CLASSES[swap]).from_config(scheduler.config, **overrides)
        if schedule in CURVES:
            scheduler = type(scheduler).from_config(scheduler.config, **{CURVES[schedule]: True})
        elif schedule:
            spacing = {"sgm_uniform": "trailing"}.get(schedule, schedule)
            scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing=spacing)
        entry.update(run(scheduler, steps if custom is None else None, custom, eta))
    except Exception as error:
        entry["error"] = type(error).__name__
    return entry


def cross_product():
    for word, prediction, steps in itertools.product(CLASSES, ("epsilon", "v_prediction", "sample"), (1, 2, 5, 20)):
        base = {"_class_name": CLASSES[word], **SD, **algorithm(word), "prediction_type": prediction, "steps_offset": 1}
        if word in ("pndm",):
            base["skip_prk_steps"] = True
        if word in ("ddim", "ddpm"):
            base["clip_sample"] = False
        for spacing in ("leading", "trailing", "linspace"):
            if word == "lcm" and spacing != "leading":
                continue
            yield case({**base, "timestep_spacing": spacing}, steps)
            if word in ("euler", "heun"):
                for flag in CURVES.values():
                    yield case({**base, "timestep_spacing": spacing, flag: True}, steps)
        if word in ("dpmpp_2m", "dpmpp_2m_sde", "unipc"):
            for flag in CURVES.values():
                yield case({**base, flag: True}, steps)


def variations(word):
    """(settings, call) pairs beyond the cross product."""
    yield {}, {}
    for n in (3, 7, 13, 30, 50, 333, 999, 1000):
        if n < 60 or word in ("ddim", "euler", "dpmpp_2m"):
            yield {"steps_offset": 0}, {"steps": n}
            yield {"timestep_spacing": "trailing"}, {"steps": n}
    yield {"beta_schedule": "squaredcos_cap_v2"}, {}
    yield {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}, {}
    yield {"trained_betas": [round(0.001 + 0.0006 * i, 6) for i in range(40)], "num_train_timesteps": 40}, {}
    yield {"num_train_timesteps": 250}, {"steps": 12}
    if word not in ("pndm", "heun"):
        for prediction in ("v_prediction", "epsilon"):
            yield {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": prediction}, {}
        yield {"rescale_betas_zero_snr": True, "timestep_spacing": "linspace", "prediction_type": "v_prediction"}, {"steps": 20}
    if word in ("ddim", "ddpm", "lcm", "heun"):
        for prediction in ("epsilon", "v_prediction", "sample"):
            yield {"clip_sample": True, "clip_sample_range": 0.8, "prediction_type": prediction}, {}
    if word in ("ddim", "pndm", "lcm"):
        yield {"set_alpha_to_one": False}, {}
        yield {"set_alpha_to_one": True}, {}
    if word == "ddim":
        for eta in (0.3, 1.0):
            yield {"clip_sample": False}, {"eta": eta}
            yield {"clip_sample": True, "timestep_spacing": "trailing"}, {"eta": eta}
    if word == "ddpm":
        for variance in ("fixed_small_log", "fixed_large"):
            yield {"variance_type": variance}, {}
        yield {"beta_schedule": "sigmoid", "beta_start": 0.0001, "beta_end": 0.02}, {}
        yield {"beta_schedule": "laplace"}, {}
        yield {}, {"custom": [901, 702, 503, 98, 0]}
    if word == "pndm":
        for n in (3, 4, 5, 11):
            yield {"skip_prk_steps": False}, {"steps": n}
        yield {"skip_prk_steps": False, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}, {"steps": 8}
        yield {"skip_prk_steps": True}, {"steps": 3}
    if word in ("euler", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        for n in (5, 16):
            yield {"final_sigmas_type": "sigma_min"}, {"steps": n}
            yield {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True}, {"steps": n}
    if word in ("euler", "heun", "dpmpp_2m", "unipc"):
        for flag in CURVES.values():
            yield {"sigma_min": 0.1, "sigma_max": 10.0, flag: True}, {}
            yield {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, flag: True}, {"steps": 11}
    if word == "euler":
        yield {"interpolation_type": "log_linear"}, {}
        yield {"interpolation_type": "log_linear", "use_karras_sigmas": True}, {}
        yield {"timestep_type": "continuous", "prediction_type": "v_prediction"}, {}
    if word == "heun":
        yield {"beta_schedule": "exp"}, {}
    if word in ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde"):
        yield {}, {"custom": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]}
    if word in ("dpmpp_2m", "dpmpp_2m_sde"):
        for order, formula, n in itertools.product((1, 2, 3), ("midpoint", "heun"), (2, 4, 9, 18)):
            yield {"solver_order": order, "solver_type": formula}, {"steps": n}
        yield {"euler_at_final": True, "final_sigmas_type": "sigma_min"}, {"steps": 16}
        yield {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": 3}, {"steps": 8}
        yield {"lower_order_final": False}, {"steps": 8}
        yield {"use_lu_lambdas": True}, {"steps": 8}
        yield {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, {"steps": 8}
        yield {"solver_type": "bh2"}, {}
    if word == "unipc":
        for order, formula, n in itertools.product((1, 2, 3), ("bh1", "bh2"), (2, 4, 9, 18)):
            end = "sigma_min" if formula == "bh1" else "zero"
            yield {"solver_order": order, "solver_type": formula, "final_sigmas_type": end}, {"steps": n}
        yield {"disable_corrector": [0, 1]}, {}
        yield {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": 3}, {"steps": 8}
        yield {"solver_type": "midpoint"}, {}
    if word == "lcm":
        for n in (3, 4, 8, 50, 51):
            yield {}, {"steps": n}
        yield {"original_inference_steps": 40, "timestep_scaling": 3.0}, {"steps": 6}
        yield {}, {"custom": [999, 759, 499, 259]}


def special_cases():
    for word in CLASSES:
        base = {"_class_name": CLASSES[word], **SD, **algorithm(word), "steps_offset": 1}
        if word == "pndm":
            base["skip_prk_steps"] = True
        for settings, call in variations(word):
            yield case({**base, **settings}, **{"steps": 6, **call})
        yield case({"_class_name": CLASSES[word], **algorithm(word)}, 5)


def swaps():
    origins = [
        {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **SD, "num_train_timesteps": 1000, "set_alpha_to_one": False,
         "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False},
        {"_class_name": "DDIMScheduler", **SD, "num_train_timesteps": 1000, "prediction_type": "v_prediction", "steps_offset": 1,
         "set_alpha_to_one": False, "clip_sample": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"_class_name": "EulerDiscreteScheduler", **SD, "num_train_timesteps": 1000, "interpolation_type": "linear",
         "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
         "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False, "clip_sample": False},
        {"_class_name": "EulerDiscreteScheduler", **SD, "sigma_min": 0.05, "sigma_max": 12.0, "use_karras_sigmas": True},
        {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"},
        {"_class_name": "DPMSolverMultistepScheduler", **SD, "solver_type": "heun", "solver_order": 3, "use_karras_sigmas": True,
         "variance_type": None, "thresholding": False, "algorithm_type": "dpmsolver++"},
    ]
    for origin in origins[3:5]:
        for word in (None, "ddim", "euler", "dpmpp_2m", "lcm"):
            yield case(origin, 5, swap=word, pipeline=True)
    for word in CLASSES:
        yield case({"_class_name": CLASSES[word], **SD, **algorithm(word)}, 5, pipeline=True)
        yield case({"_class_name": CLASSES[word], **SD, **algorithm(word), "steps_offset": 3, "clip_sample": True}, 5, pipeline=True)
    schedules = {"ddim": ["linspace"], "euler": ["karras", "sgm_uniform"], "dpmpp_2m": ["exponential", "leading"], "unipc": ["karras"]}
    for origin, word in itertools.product(origins, CLASSES):
        yield case(origin, 5, swap=word)
        for schedule in schedules.get(word, []):
            if not origin.get("use_karras_sigmas"):
                yield case(origin, 5, swap=word, schedule=schedule)


def bounded_and_learned():
    """Learned variances, dynamic thresholding, published lists of timesteps, and unCLIP's own DDPM."""
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    fast = [999, 800, 799, 600, 599, 500, 400, 399, 377, 355, 333, 311, 288, 266, 244, 222, 200, 199, 177, 155, 133, 111, 88, 66, 44, 22, 0]
    variances = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
    threshold = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5}
    for kind, prediction, bound in itertools.product(
        variances, ("epsilon", "sample", "v_prediction"), ({"clip_sample": False}, {"clip_sample_range": 0.7}, threshold)
    ):
        base = {"_class_name": "DDPMScheduler", **cosine, "variance_type": kind, "prediction_type": prediction, **bound}
        yield case(base, 7)
        if prediction == "epsilon":
            yield case({**base, "timestep_spacing": "trailing"}, 3)
            yield case(base, custom=fast)
    for ratio, most in ((0.995, 1.0), (0.5, 3.0), (0.0, 2.0), (1.0, 0.5)):
        config = {"dynamic_thresholding_ratio": ratio, "sample_max_value": most, "thresholding": True}
        yield case({"_class_name": "DDPMScheduler", **cosine, "variance_type": "learned_range", **config}, 9)
    for word in ("ddim", "lcm", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        config = {"_class_name": CLASSES[word], **SD, **algorithm(word), **threshold, "sample_max_value": 4.0}
        yield case(config, 6, eta=1.0 if word == "ddim" else 0.0)
        yield case({**config, "prediction_type": "v_prediction"}, 4)
    for kind, prediction, steps in itertools.product(("fixed_small_log", "learned_range"), ("epsilon", "sample", "v_prediction"), (1, 2, 7, 25)):
        yield case({"_class_name": "UnCLIPScheduler", "variance_type": kind, "prediction_type": prediction}, steps)
        yield case({"_class_name": "UnCLIPScheduler", "variance_type": kind, "prediction_type": prediction, "clip_sample_range": 5.0}, steps)
    for settings in ({"clip_sample": False}, {"num_train_timesteps": 60}, {"variance_type": "fixed_large"}, {"beta_schedule": "linear"}):
        yield case({"_class_name": "UnCLIPScheduler", **settings}, 50)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    chosen = sys.argv[1:]
    for name, cases in (("product", cross_product()), ("special", special_cases()), ("swaps", swaps()), ("learned", bounded_and_learned())):
        if chosen and name not in chosen:
            continue
        rows = [json.dumps(c, separators=(",", ":")) for c in cases]
        (OUT / f"{name}.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")
        print(name, len(rows), sum('"error"' in r for r in rows))


main()
