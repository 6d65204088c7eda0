"""The committed pipelines: one entry per folder of `tests/goldens/pipelines/`, (spec, case, taps)."""
ALL = ("unet", "vae", "text")
SD_BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LONG = (
    "a very detailed oil painting of an old lighthouse on a cliff above the stormy sea, dramatic clouds, golden hour, "
    "waves breaking against black rocks, seagulls, highly detailed, sharp focus, in the style of the romantic era, "
    "with a small wooden boat in the foreground and distant mountains, masterpiece, best quality, trending, intricate"
)
UNICODE = "Ein schöner Café-Tisch, naïve ÉLÉGANCE, 東京の夜, привет мир, 🍎🚀, it's 3½ o’clock… ﬁn"


def sd_unet(channels, context, **more):
    n = len(channels)
    base = dict(
        sample_size=8,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * (n - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (n - 1),
        layers_per_block=1,
        cross_attention_dim=context,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return base | more


def vae(channels, groups, **more):
    n = len(channels)
    base = dict(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=groups,
        sample_size=32,
        scaling_factor=0.18215,
    )
    return base | more


def text(hidden, heads, layers=2, act="quick_gelu", **more):
    base = dict(hidden_size=hidden, num_attention_heads=heads, intermediate_size=2 * hidden + 3, projection_dim=hidden)
    return base | dict(num_hidden_layers=layers, hidden_act=act) | more


def tokenizer(**more):
    return dict(merge_count=94) | more


def sd1():
    spec = dict(kind="sd", seed=11, unet=sd_unet((10, 16), 21, norm_num_groups=2), vae=vae((4, 6, 10), 2), text=text(21, 3))
    scheduler = ("PNDMScheduler", SD_BETAS | dict(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1))
    spec |= dict(scheduler=scheduler, tokenizer=tokenizer())
    case = dict(prompt="a red apple on the table", negative_prompt="blurry, bad", height=16, width=24, steps=5, guidance=7.5, seed=42)
    return spec, case, ALL


def sd2_v():
    unet = sd_unet((8, 10, 10), 20, attention_head_dim=[1, 2, 2], use_linear_projection=True, norm_num_groups=2, upcast_attention=True)
    scheduler = ("DDIMScheduler", SD_BETAS | dict(prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1))
    spec = dict(kind="sd", seed=12, unet=unet, vae=vae((4, 6, 10), 2), text=text(20, 4, 2, "gelu"), scheduler=scheduler)
    spec |= dict(tokenizer=tokenizer(pad="!", style="json"), text_prefix=False)
    case = dict(prompt="A photo of a CAT, 2 cats!", height=40, width=16, steps=4, guidance=5.0, seed=7)
    return spec, case, ALL


def sdxl_parts(context, pooled, channels=(6, 10)):
    unet = sd_unet(channels, context, attention_head_dim=(2, 2), use_linear_projection=True, transformer_layers_per_block=(1, 2))
    unet |= dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    unet |= dict(addition_embed_type="text_time", addition_time_embed_dim=6, norm_num_groups=2)
    return unet | dict(projection_class_embeddings_input_dim=36 + pooled)


def sdxl():
    spec = dict(kind="sdxl", seed=13, unet=sdxl_parts(33, 14), vae=vae((4, 6, 8), 2, scaling_factor=0.13025, force_upcast=True))
    spec |= dict(text=text(12, 2, 3, eos_token_id=2), text_2=text(21, 3, 3, "gelu", projection_dim=14))
    spec |= dict(scheduler=("EulerDiscreteScheduler", SD_BETAS | dict(timestep_spacing="leading", steps_offset=1)))
    spec |= dict(tokenizer=tokenizer(), tokenizer_2=dict(pad="!"))
    case = dict(prompt="an astronaut riding a horse", height=16, width=24, steps=4, guidance=5.0, seed=3)
    return spec, case, ALL


def sdxl_turbo():
    spec, _, _ = sdxl()
    spec = spec | dict(seed=14, force_zeros=False, unet=sdxl_parts(26, 15, (8, 10)), dtype="bf16")
    spec |= dict(text=text(10, 2, 2), text_2=text(16, 4, 3, "gelu", projection_dim=15))
    spec |= dict(scheduler=("EulerAncestralDiscreteScheduler", SD_BETAS | dict(timestep_spacing="trailing", steps_offset=1)))
    case = dict(prompt="a tiny house", negative_prompt="ugly", height=32, width=16, steps=3, guidance=0.0, seed=123456789)
    return spec, case, ("vae",)


def lcm():
    spec = dict(kind="sd", seed=15, unet=sd_unet((10, 14), 12, time_cond_proj_dim=12, norm_num_groups=2, attention_head_dim=(1, 2)))
    scheduler = ("LCMScheduler", SD_BETAS | dict(set_alpha_to_one=True, steps_offset=1, original_inference_steps=50))
    spec |= dict(vae=vae((6, 8), 2), text=text(12, 3), scheduler=scheduler, tokenizer=tokenizer(style="json"))
    case = dict(prompt="green heart", height=16, width=24, steps=4, guidance=8.5, seed=5)
    return spec, case, ("unet",)


def rescale():
    unet = sd_unet((8, 10, 10), 15, attention_head_dim=[1, 2, 1], norm_num_groups=2)
    arguments = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler = ("DDIMScheduler", SD_BETAS | arguments | dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1))
    spec = dict(kind="sd", seed=16, unet=unet, vae=vae((4, 6, 8, 10), 2), text=text(15, 3, 3), scheduler=scheduler)
    spec |= dict(tokenizer=tokenizer())
    case = dict(prompt="sunset over the sea", negative_prompt="dark", height=40, width=72, steps=4, guidance=7.5, seed=99)
    return spec, case | dict(guidance_rescale=0.7, clip_skip=1), ()


def long_prompt():
    unet = sd_unet((8, 10), 12, layers_per_block=2, norm_num_groups=2, attention_head_dim=2)
    arguments = dict(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1)
    spec = dict(kind="sd", seed=17, unet=unet, vae=vae((6, 8, 8), 2, layers_per_block=2), text=text(12, 2))
    spec |= dict(scheduler=("DPMSolverMultistepScheduler", SD_BETAS | arguments), tokenizer=tokenizer())
    case = dict(prompt=LONG, negative_prompt=LONG[60:], height=32, width=24, steps=5, guidance=6.0, seed=2**31)
    return spec, case, ()


def unicode_prompt():
    unet = sd_unet((6, 10), 15, use_linear_projection=True, attention_head_dim=[1, 2], norm_num_groups=2)
    scheduler = ("UniPCMultistepScheduler", SD_BETAS | dict(prediction_type="v_prediction", steps_offset=1))
    spec = dict(kind="sd", seed=18, unet=unet, vae=vae((4, 6, 8, 8), 2), text=text(15, 5, 2, "gelu"), scheduler=scheduler)
    spec |= dict(tokenizer=tokenizer(pad="!", style="json"), dtype="f32")
    case = dict(prompt=UNICODE, negative_prompt="ÄÖÜ ß", height=8, width=24, steps=5, guidance=3.0, seed=1)
    return spec, case, ()


CASES = dict(
    sd1=sd1, sd2_v=sd2_v, sdxl=sdxl, sdxl_turbo=sdxl_turbo, lcm=lcm, rescale=rescale, long_prompt=long_prompt, unicode_prompt=unicode_prompt
)
EMOJI = dict(prompt="red apple on a blue background", height=128, width=128, steps=20, guidance=3.0, seed=0)
