"""Write assets/emoji-imagen (float16), load it again with diffusers and draw a grid. usage: export.py OUT GRID.png [guidance] [steps] [sr guidance] [sr steps] [noise level]"""
import shutil, time
from data import *
import text, unet
from safetensors.torch import save_file
from sample import P as PROMPTS, grid

OUT, PNG = sys.argv[1:3]; G, N, G2, N2, LV = (float(x) for x in (sys.argv[3:] + ["3", "25", "1.5", "12", "100"][len(sys.argv) - 3:]))
torch.set_num_threads(1); total = 0


def put(d, name, sd, cfg):
    global total
    os.makedirs(f"{OUT}/{d}", exist_ok=True); sd = {k: v.half().contiguous() for k, v in sd.items()}; assert all(torch.isfinite(v).all() for v in sd.values())
    save_file(sd, f"{OUT}/{d}/{name}", metadata={"format": "pt"}); total += os.path.getsize(f"{OUT}/{d}/{name}")
    json.dump(cfg, open(f"{OUT}/{d}/config.json", "w"), indent=2, sort_keys=True)


te = text.make(); c = te.config.to_dict()
c = {k: c[k] for k in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj", "dense_act_fn", "is_gated_act", "dropout_rate", "relative_attention_num_buckets", "relative_attention_max_distance",
                       "layer_norm_epsilon", "initializer_factor", "pad_token_id", "eos_token_id", "decoder_start_token_id", "is_encoder_decoder", "model_type") if k in c}
sd = {k: v for k, v in te.state_dict().items() if k != "encoder.embed_tokens.weight"}
put("I/text_encoder", "model.safetensors", sd, dict(c, architectures=["T5EncoderModel"], torch_dtype="float16", tie_word_embeddings=False))
os.makedirs(f"{OUT}/I/tokenizer", exist_ok=True)
for f in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"): shutil.copy(f"{text.TOK}/{f}", f"{OUT}/I/tokenizer/{f}")
for s in ("I", "II"):
    un = unet.make(s); q = torch.load(f"{WORK}/unet{s}.pt"); un.load_state_dict(q["model"])
    for p, e in zip(un.parameters(), q["ema"]): p.data.copy_(e)
    put(f"{s}/unet", "diffusion_pytorch_model.safetensors", un.state_dict(), {k: v for k, v in json.loads(un.to_json_string()).items() if k not in ("_name_or_path", "_use_default_values")})
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline
clean = lambda x: {k: v for k, v in json.loads(x.to_json_string()).items() if k != "_use_default_values"}
for s, mx in (("I", 1.5), ("II", 1.0)):
    a = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", variance_type="learned_range", prediction_type="v_prediction", thresholding=True, dynamic_thresholding_ratio=.95, sample_max_value=mx, timestep_spacing="trailing", steps_offset=0)
    todo = [("scheduler", a)] + ([("image_noising_scheduler", DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2"))] if s == "II" else [])
    for n, x in todo:
        os.makedirs(f"{OUT}/{s}/{n}", exist_ok=True); json.dump(clean(x), open(f"{OUT}/{s}/{n}/scheduler_config.json", "w"), indent=2, sort_keys=True)
none = [None, None]; base = {"_diffusers_version": "0.42.1", "feature_extractor": none, "safety_checker": none, "watermarker": none, "requires_safety_checker": False, "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DConditionModel"]}
json.dump(dict(base, _class_name="IFPipeline", text_encoder=["transformers", "T5EncoderModel"], tokenizer=["transformers", "T5Tokenizer"]), open(f"{OUT}/I/model_index.json", "w"), indent=2, sort_keys=True)
json.dump(dict(base, _class_name="IFSuperResolutionPipeline", text_encoder=none, tokenizer=none, image_noising_scheduler=["diffusers", "DDPMScheduler"]), open(f"{OUT}/II/model_index.json", "w"), indent=2, sort_keys=True)
print("bytes", total); assert total < 14_000_000
one = IFPipeline.from_pretrained(f"{OUT}/I", torch_dtype=torch.float32); two = IFSuperResolutionPipeline.from_pretrained(f"{OUT}/II", torch_dtype=torch.float32)
for c in ("red apple", "Smiling face with heart-eyes", "a picture of a cat, teal background"):
    print("tokens agree", one.tokenizer(c.lower(), padding="max_length", max_length=77).input_ids == text.ids_of([c.lower()])[0].tolist(), c)
if os.environ.get("FAST"):
    import fastnorm; fastnorm.patch()
ims = []; lows = []; t0 = time.time()
with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(os.environ.get("FAST"))):
    for p in (one, two): p.set_progress_bar_config(disable=True); p.unet.to(memory_format=torch.channels_last)
    for k in range(0, len(PROMPTS), 16):
        pr = PROMPTS[k:k + 16]; g = torch.Generator().manual_seed(1 + k); e, ne = one.encode_prompt(pr)
        low = one(prompt_embeds=e, negative_prompt_embeds=ne, guidance_scale=G, num_inference_steps=int(N), generator=g, output_type="pt").images
        hi = two(prompt_embeds=e, negative_prompt_embeds=ne, image=low, guidance_scale=G2, num_inference_steps=int(N2), noise_level=int(LV), generator=g, output_type="pil").images
        ims += hi; lows += [x.resize((128, 128), 0) for x in one.image_processor.numpy_to_pil(((low.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy())] if hasattr(one, "image_processor") else one.numpy_to_pil(((low.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy())
grid(ims, PROMPTS).save(PNG); grid([x.resize((128, 128), 0) for x in lows], PROMPTS).save(PNG.replace(".png", "-low.png")); print("seconds per picture", (time.time() - t0) / len(ims), sys.argv[3:])
