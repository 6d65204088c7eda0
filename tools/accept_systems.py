"""Compares a built scumble with diffusers on random tiny pipelines of the systems beside Stable Diffusion. Not part of CI.

usage: python tools/accept_systems.py --binary target/release/scumble [--systems if1,if2,karlo,kandinsky,x4,esrgan] [--cases N]
       [--seed S] [--only I] [--keep DIR] [--precision f32]

Each case writes a pipeline with random weights, runs diffusers in f32 on the CPU, runs scumble on the same files and prints
the PSNR and the largest difference of the 8-bit pictures. A case fails below 65 dB or with a value off by more than 2.
"""
import argparse
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "goldens"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import accept  # noqa: E402
import bpe  # noqa: E402
import diffusers  # noqa: E402
import esrgan  # noqa: E402
import numpy as np  # noqa: E402
import random_cases  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel  # noqa: E402
from PIL import Image  # noqa: E402

LEAST_DB, MOST = 65.0, 2


def randomise(module, seed, gain=1.0):
    """Every parameter drawn anew: norm weights around 1, biases, tables, matrices of unit gain."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            n = torch.randn(p.shape, generator=g)
            if p.ndim == 1:
                p.copy_(1 + 0.2 * n if name.endswith("weight") else 0.2 * n)
            elif "embedding" in name or name == "shared.weight":
                p.copy_(0.5 * n)
            else:
                p.copy_(n * gain / p[0].numel() ** 0.5)
    return module.eval()


def clip_text(r, folder, hidden=None, projection=None, layers=None):
    """A CLIP text encoder with its tokenizer."""
    vocab = bpe.write_tokenizer(folder, r.choice([0, 40, 200]), style="json")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    width = hidden or r.choice([16, 24, 40])
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=width, intermediate_size=r.choice([37, 64]), projection_dim=projection or width,
        num_attention_heads=r.choice([h for h in (1, 2, 4) if width % h == 0]), num_hidden_layers=layers or r.choice([1, 2, 3]),
        hidden_act=r.choice(["gelu", "quick_gelu"]), max_position_embeddings=77,
        bos_token_id=len(vocab) - 2, eos_token_id=len(vocab) - 1, pad_token_id=len(vocab) - 1,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return randomise(kind(config), r.randrange(1 << 30)), tokenizer


def t5(r, folder):
    """A T5 encoder with a unigram tokenizer of its own."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    words = random_cases.WORDS * 3 + [random_cases.prompt(r, "short") for _ in range(40)]
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(words, trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512)
    fast.save_pretrained(folder)
    loaded = transformers.T5TokenizerFast.from_pretrained(folder)
    config = transformers.T5Config(
        vocab_size=tokenizer.get_vocab_size() + r.choice([0, 5]), d_model=r.choice([16, 24, 32]), d_kv=r.choice([6, 8]), d_ff=r.choice([37, 48]),
        num_layers=r.choice([1, 2, 3]), num_heads=r.choice([2, 3, 4]), relative_attention_num_buckets=r.choice([8, 16, 32]),
        relative_attention_max_distance=r.choice([20, 64, 128]), feed_forward_proj=r.choice(["gated-gelu", "gated-gelu", "relu"]),
    )
    return randomise(transformers.T5EncoderModel(config), r.randrange(1 << 30), 0.7), loaded


def simple_unet(r, inputs, outputs, context, sample, hidden=None, **more):
    """A UNet of the blocks that IF, Karlo and Kandinsky share."""
    groups = r.choice([2, 4])
    levels = r.choice([1, 2, 2, 3])
    channels = [groups * r.choice([4, 6, 8]) for _ in range(levels)]
    cross = [r.random() < 0.7 for _ in channels]
    down = ["SimpleCrossAttnDownBlock2D" if c else "ResnetDownsampleBlock2D" for c in cross]
    up = ["SimpleCrossAttnUpBlock2D" if c else "ResnetUpsampleBlock2D" for c in reversed(cross)]
    width = r.choice([w for w in (4, 8) if all(c % w == 0 for c in channels)])
    layers = r.choice([1, 2]) if r.random() < 0.6 else [r.choice([1, 2]) for _ in channels]
    config = dict(
        sample_size=sample, in_channels=inputs, out_channels=outputs, block_out_channels=channels, down_block_types=down, up_block_types=up,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=context, attention_head_dim=width, layers_per_block=layers,
        norm_num_groups=groups, resnet_time_scale_shift="scale_shift", encoder_hid_dim=hidden,
    )
    return calibrated(randomise(diffusers.UNet2DConditionModel(**(config | more)), r.randrange(1 << 30)))


def calibrated(unet):
    """Output layers scaled so that predictions spread by about 1; the variance half stays within -1 to 1."""
    with torch.no_grad():
        unet.conv_out.weight *= 0.7
        unet.conv_out.bias *= 0.3
    return unet


def ddpm(r, limit):
    """The pipelines drop the variance half of a prediction where the scheduler has a fixed variance."""
    chosen = dict(variance_type=r.choice(["learned_range"] * 4 + ["fixed_small", "fixed_small_log", "fixed_large"]))
    if r.random() < 0.7:
        chosen |= dict(thresholding=True, dynamic_thresholding_ratio=r.choice([0.9, 0.95, 0.995]), sample_max_value=limit)
    return diffusers.DDPMScheduler(beta_schedule=r.choice(["squaredcos_cap_v2", "linear"]), clip_sample=r.random() < 0.8, **chosen)


def text_conditioned(r, encoder):
    return dict(
        hidden=encoder.config.d_model, addition_embed_type="text", addition_embed_type_num_heads=r.choice([2, 4]), cross_attention_norm="group_norm",
        act_fn="gelu",
    )


def drawing(r):
    case = dict(prompt=random_cases.prompt(r), steps=r.randint(2, 5), guidance=r.choice([1.0, 3.0, 7.0]), seed=r.randrange(1 << 31))
    if r.random() < 0.5:
        case["negative_prompt"] = random_cases.prompt(r, "short")
    return case


def call(pipe, case, **more):
    pipe.set_progress_bar_config(disable=True)
    kwargs = dict(prompt=case["prompt"], num_inference_steps=case["steps"], guidance_scale=case["guidance"], negative_prompt=case.get("negative_prompt"))
    image = pipe(**(kwargs | more), generator=torch.Generator().manual_seed(case["seed"])).images[0]
    return np.asarray(image)


def common_words(case):
    words = ["--steps", case["steps"], "--cfg-scale", case["guidance"], "-s", case["seed"]]
    return words + (["-n", case["negative_prompt"]] if case.get("negative_prompt") is not None else [])


def picture(r, path, size):
    """A smooth random picture, so that resizing matters and rounding does not."""
    small = np.array([[[r.randrange(256) for _ in range(3)] for _ in range(4)] for _ in range(4)], dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.BICUBIC)
    image.save(path)
    return image


def case_if1(r, folder):
    encoder, tokenizer = t5(r, folder / "tok")
    unet = simple_unet(r, 3, 6, 32, r.choice([8, 16]), **text_conditioned(r, encoder))
    pipe = diffusers.IFPipeline(tokenizer, encoder, unet, ddpm(r, 1.5), None, None, None, requires_safety_checker=False)
    pipe.save_pretrained(folder / "model")
    case = drawing(r)
    unit = 2 ** (len(unet.config.block_out_channels) - 1)
    width, height = (8 * r.randint(1, 3) for _ in range(2)) if unit <= 8 else (16, 16)
    want = call(pipe, case, width=width, height=height, clean_caption=False)
    return want, ["generate", case["prompt"], "-m", folder / "model", "-W", width, "-H", height, *common_words(case)]


def case_if2(r, folder):
    encoder, tokenizer = t5(r, folder / "tok")
    size = r.choice([16, 24, 32])
    more = dict(class_embed_type="timestep", resnet_skip_time_act=True, resnet_out_scale_factor=2**0.5, mid_block_scale_factor=2**0.5,
                only_cross_attention=True, time_embedding_act_fn="gelu") if r.random() < 0.7 else dict(class_embed_type="timestep")
    unet = simple_unet(r, 6, 6, 32, size, **text_conditioned(r, encoder), **more)
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    pipe = diffusers.IFSuperResolutionPipeline(tokenizer, encoder, unet, ddpm(r, 1.0), noising, None, None, None, requires_safety_checker=False)
    pipe.save_pretrained(folder / "model")
    case, level = drawing(r), r.choice([0, 50, 250, 700])
    image = picture(r, folder / "in.png", (8, 8))
    want = call(pipe, case, image=image, height=size, width=size, noise_level=level, clean_caption=False)
    return want, ["upscale", folder / "in.png", "-p", case["prompt"], "-m", folder / "model", "--noise-level", level, *common_words(case)]


def prior(r, width):
    heads = r.choice([1, 2, 3])
    inner = heads * r.choice([6, 8, 12])
    more = dict(norm_in_type=r.choice([None, None, "layer"]), embedding_proj_norm_type=r.choice([None, None, "layer"]), time_embed_act_fn=r.choice(["silu", "silu", "gelu"]),
                time_embed_dim=r.choice([None, 20]), encoder_hid_proj_type=None if inner == width else "linear")
    model = diffusers.PriorTransformer(num_attention_heads=heads, attention_head_dim=inner // heads, embedding_dim=width, num_layers=r.choice([1, 2, 3]), **more)
    model = randomise(model, r.randrange(1 << 30))
    with torch.no_grad():
        model.clip_std.abs_().add_(0.5)
    return model


def sr_unet(r, size):
    groups = r.choice([2, 4])
    channels = [groups * r.choice([4, 6]) for _ in range(r.choice([2, 3]))]
    config = dict(sample_size=size, in_channels=6, out_channels=3, block_out_channels=channels, layers_per_block=r.choice([1, 2]), norm_num_groups=groups,
                  down_block_types=["ResnetDownsampleBlock2D"] * len(channels), up_block_types=["ResnetUpsampleBlock2D"] * len(channels),
                  add_attention=False, resnet_time_scale_shift="scale_shift")
    return calibrated(randomise(diffusers.UNet2DModel(**config), r.randrange(1 << 30)))


def case_karlo(r, folder):
    width = r.choice([16, 24, 32])
    encoder, tokenizer = clip_text(r, folder / "tok", width, projection=width)
    context = r.choice([16, 20])
    size, large = r.choice([8, 16]), r.choice([16, 32])
    decoder = simple_unet(r, 3, 6, context, size, class_embed_type="identity")
    text_proj = randomise(UnCLIPTextProjModel(
        clip_embeddings_dim=width, time_embed_dim=decoder.time_embedding.linear_2.out_features, cross_attention_dim=context,
        clip_extra_context_tokens=r.choice([1, 2, 4])), r.randrange(1 << 30))
    first = sr_unet(r, large)
    last = randomise(diffusers.UNet2DModel.from_config(first.config), r.randrange(1 << 30))
    clip_range = dict(clip_sample=True, clip_sample_range=5.0)
    pipe = diffusers.UnCLIPPipeline(
        prior(r, width), decoder, encoder, tokenizer, text_proj, first, calibrated(last),
        diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", **clip_range),
        diffusers.UnCLIPScheduler(variance_type="learned_range", prediction_type=r.choice(["epsilon", "sample"])),
        # Of a random model's noise comes black and white alone.
        diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type=r.choice(["epsilon", "sample", "sample"])))
    pipe.save_pretrained(folder / "model")
    case = drawing(r) | dict(prior_steps=r.randint(2, 4), prior_guidance=r.choice([1.0, 4.0]), sr_steps=r.randint(2, 3))
    case.pop("negative_prompt", None)
    pipe.set_progress_bar_config(disable=True)
    want = np.asarray(pipe(
        prompt=case["prompt"], prior_num_inference_steps=case["prior_steps"], decoder_num_inference_steps=case["steps"],
        super_res_num_inference_steps=case["sr_steps"], prior_guidance_scale=case["prior_guidance"], decoder_guidance_scale=case["guidance"],
        generator=torch.Generator().manual_seed(case["seed"])).images[0])
    words = ["--prior-steps", case["prior_steps"], "--prior-cfg-scale", case["prior_guidance"], "--sr-steps", case["sr_steps"]]
    return want, ["generate", case["prompt"], "-m", folder / "model", *common_words(case), *words]


def case_kandinsky(r, folder):
    width = r.choice([16, 24, 32])
    encoder, tokenizer = clip_text(r, folder / "tok", width, projection=width)
    vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=37, projection_dim=width, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7))
    scheduler = diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0)
    processor = transformers.CLIPImageProcessor(crop_size=28, size=28)
    first = diffusers.KandinskyV22PriorPipeline(prior(r, width), randomise(vision, r.randrange(1 << 30)), encoder, tokenizer, scheduler, processor)
    first.save_pretrained(folder / "prior")
    context = r.choice([16, 32])
    unet = simple_unet(r, 4, 8, context, 16, hidden=width, encoder_hid_dim_type="image_proj", addition_embed_type="image")
    levels = r.choice([2, 3])
    # SpatialNorm has 32 groups whatever the config says.
    groups = r.choice([8, 32])
    movq = randomise(diffusers.VQModel(
        block_out_channels=[32 * r.choice([1, 2]) for _ in range(levels)], down_block_types=["DownEncoderBlock2D"] * (levels - 1) + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1), latent_channels=4, layers_per_block=r.choice([1, 2]),
        norm_num_groups=groups, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4), r.randrange(1 << 30))
    with torch.no_grad():
        movq.decoder.conv_out.weight *= 0.4
    if r.random() < 0.5:
        scheduler = diffusers.DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    else:
        variance = dict(variance_type="learned_range") if r.random() < 0.5 else {}
        scheduler = diffusers.DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=True, clip_sample_range=2.0, **variance)
    second = diffusers.KandinskyV22Pipeline(unet, scheduler, movq)
    second.save_pretrained(folder / "model")
    case = drawing(r) | dict(prior_steps=r.randint(2, 4), prior_guidance=r.choice([1.0, 4.0]))
    scale = 2 ** (levels - 1)
    width_px, height_px = 64 * r.randint(1, 2), 64 * r.randint(1, 2)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(case["seed"])
    embeds = first(case["prompt"], negative_prompt=case.get("negative_prompt"), num_inference_steps=case["prior_steps"], guidance_scale=case["prior_guidance"], generator=generator)
    out = second(image_embeds=embeds.image_embeds, negative_image_embeds=embeds.negative_image_embeds, height=height_px, width=width_px,
                 num_inference_steps=case["steps"], guidance_scale=case["guidance"], generator=generator)
    want = np.asarray(out.images[0])
    print(f"    latent scale {scale}, picture {want.shape}")
    words = ["--prior-steps", case["prior_steps"], "--prior-cfg-scale", case["prior_guidance"]]
    return want, ["generate", case["prompt"], "-m", folder / "model", "--prior", folder / "prior", "-W", width_px, "-H", height_px, *common_words(case), *words]


def case_x4(r, folder):
    encoder, tokenizer = clip_text(r, folder / "tok")
    groups = r.choice([2, 4])
    channels = [groups * r.choice([4, 6, 8]) for _ in range(r.choice([2, 3]))]
    cross = [r.random() < 0.6 for _ in channels]
    unet = calibrated(randomise(diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=7, out_channels=4, block_out_channels=channels, norm_num_groups=groups, layers_per_block=r.choice([1, 2]),
        down_block_types=["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        up_block_types=["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
        only_cross_attention=r.choice([True, [r.random() < 0.5 for _ in channels]]), attention_head_dim=random_cases.head_counts(r, channels),
        num_class_embeds=1000, use_linear_projection=r.random() < 0.7, cross_attention_dim=encoder.config.hidden_size), r.randrange(1 << 30)))
    vae_groups = r.choice([2, 4])
    vae = randomise(diffusers.AutoencoderKL(
        block_out_channels=[vae_groups * r.choice([2, 4]) for _ in range(3)], down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3, norm_num_groups=vae_groups, latent_channels=4, scaling_factor=0.08333), r.randrange(1 << 30))
    with torch.no_grad():
        vae.post_quant_conv.weight *= 0.05
        vae.decoder.conv_out.weight *= 0.4
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.02, prediction_type=r.choice(["v_prediction", "epsilon"]),
                                        clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    low = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.02)
    pipe = diffusers.StableDiffusionUpscalePipeline(vae, encoder, tokenizer, unet, low, scheduler, max_noise_level=350)
    pipe.save_pretrained(folder / "model")
    case, level = drawing(r), r.choice([0, 20, 100, 350])
    image = picture(r, folder / "in.png", (8 * r.randint(1, 3), 8 * r.randint(1, 3)))
    want = call(pipe, case, image=image, noise_level=level)
    return want, ["upscale", folder / "in.png", "-p", case["prompt"], "-m", folder / "model", "--noise-level", level, *common_words(case)]


def case_esrgan(r, folder):
    layout = r.choice(["words", "later", "numbered"])
    doublings = r.choice([2, 2, 2, 1, 0, 3]) if layout == "numbered" else r.choice([2, 2, 1])
    shape = dict(
        width=r.choice([8, 12, 16, 18, 32]), growth=r.choice([4, 5, 8, 16]), blocks=r.choice([1, 2, 3]), doublings=doublings,
        unshuffle=r.choice([1, 2, 4]) if doublings == 2 and layout == "words" else 1)
    network = esrgan.randomise(esrgan.Network(**shape, plus=layout == "numbered" and r.random() < 0.4), r.randrange(1 << 30), halves=False)
    tensors = esrgan.named(network, layout)
    if r.random() < 0.3:
        tensors = {f"module.{key}": value for key, value in tensors.items()}
    if r.random() < 0.3:
        model = folder / "model.safetensors"
        esrgan.save_file(tensors, model)
    else:
        model = folder / "model.pth"
        wrapped = r.choice([tensors, {"params_ema": tensors}, {"params": {k: v * 0 for k, v in tensors.items()}, "params_ema": tensors}, {"params": tensors}])
        torch.save(wrapped, model, _use_new_zipfile_serialization=r.random() < 0.7)
    image = picture(r, folder / "in.png", (r.randint(5, 70), r.randint(5, 50)))
    pixels = torch.from_numpy(np.asarray(image).copy()).float().permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        made = network(pixels)[0].permute(1, 2, 0)
    want = (made.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    words = ["--tile", r.choice(["off", 16, 32])] if r.random() < 0.4 and shape["blocks"] == 1 and shape["unshuffle"] == 1 else []
    return want, ["upscale", folder / "in.png", "-m", model, *words]


SYSTEMS = dict(if1=case_if1, if2=case_if2, karlo=case_karlo, kandinsky=case_kandinsky, x4=case_x4, esrgan=case_esrgan)


def one(args, system, index, root):
    """Builds, draws and compares one case; whether it passed."""
    folder = root / f"{system}-{args.seed}-{index}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    want, words = SYSTEMS[system](random.Random(f"{system}/{args.seed}/{index}"), folder)
    Image.fromarray(want).save(folder / "reference.png")
    words = [str(word) for word in [args.binary, *words, "--precision", args.precision, "-o", folder / "out.png"]]
    (folder / "command").write_text(shlex.join(words) + "\n")
    spread = want.astype(float).std()
    label = f"{system} {index} {want.shape[1]}x{want.shape[0]}, spread {spread:.0f}"
    if args.binary == "none":
        print(label, flush=True)
        return True
    start = time.time()
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, errors="replace")
    if done.returncode != 0:
        print(f"FAIL {label}: exit {done.returncode}: {' | '.join(done.stderr.strip().splitlines()[-2:])}", flush=True)
        return False
    got = np.asarray(Image.open(folder / "out.png").convert("RGB"))
    if got.shape != want.shape:
        print(f"FAIL {label}: picture {got.shape}", flush=True)
        return False
    decibels, worst = accept.psnr(got, want), int(np.abs(got.astype(int) - want.astype(int)).max())
    passed = decibels >= LEAST_DB and worst <= MOST
    print(f"{'ok  ' if passed else 'FAIL'} {label}: {decibels:.1f} dB, off by {worst}, {time.time() - start:.1f} s", flush=True)
    if passed and not args.keep:
        shutil.rmtree(folder)
    return passed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    if args.binary != "none":
        args.binary = str(Path(args.binary).resolve())
    root = args.keep or Path(tempfile.mkdtemp(prefix="scumble-accept-"))
    failed = []
    for system in args.systems.split(","):
        for index in args.only if args.only else range(args.cases):
            try:
                passed = one(args, system, index, root)
            except Exception:
                traceback.print_exc()
                passed = False
            failed += [] if passed else [f"{system}-{index}"]
    print(f"{len(failed)} failures {failed}; folders under {root}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
