"""Write assets/emoji-dalle (float16) and a grid of samples. usage: export.py OUT GRID.png [scale] [top_k] [temperature]"""
import os; os.environ["PLAIN"] = "1"
import bart, vqgan
from bart import *
from safetensors.torch import save_file, load_file
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import shutil
from sample import P as PROMPTS, grid
from PIL import Image

OUT, PNG = sys.argv[1:3]; S, K, T = (float(x) for x in (sys.argv[3:] + ["1.5", "8", "0.3"][len(sys.argv) - 3:]))
torch.set_num_threads(1); torch.manual_seed(0)
m, v = bart.load_ema(), vqgan.load_ema(); os.makedirs(f"{OUT}/vqgan", exist_ok=True)
half = lambda d: {k: x.half().contiguous() for k, x in d.items()}
save_file(half(m.state_dict()), f"{OUT}/model.safetensors", metadata={"format": "pt"})
save_file(half({k: x for k, x in v.state_dict().items() if k.startswith(("decoder.", "embedding.", "post_quant_conv."))}), f"{OUT}/vqgan/model.safetensors", metadata={"format": "pt"})
json.dump(dict(vqgan.CFG, model_type="vqgan", architectures=["VQModel"]), open(f"{OUT}/vqgan/config.json", "w"), indent=2)
json.dump(dict(model_type="dallebart", architectures=["DalleBart"], d_model=W, encoder_layers=ENC, decoder_layers=DEC, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=GLU_W, decoder_ffn_dim=GLU_W,
               encoder_vocab_size=NV, image_vocab_size=CODES, image_length=GRID * GRID, max_text_length=LEN, activation_function="gelu", bos_token_id=CODES, eos_token_id=CODES, pad_token_id=CODES, decoder_start_token_id=CODES,
               normalize_text=False, use_bias=False, ln_type="layernorm", ln_positions="normformer", use_glu=True, use_head_scale=False, use_cosine_attention=False, use_alibi=False, use_deepnet_scaling=False, use_final_ln_encoder=True,
               use_final_ln_decoder=True, force_ln_scale=False, scale_embedding=False, tie_word_embeddings=False, use_absolute_position_embeddings=True, use_subln_init=False, use_swin_position_embeddings=False, dropout=0.0, activation_dropout=0.0,
               attention_dropout=0.0, is_encoder_decoder=True, init_std=0.02), open(f"{OUT}/config.json", "w"), indent=2, sort_keys=True)
for f in ("vocab.json", "merges.txt"): shutil.copy(f"{TOK}/{f}", f"{OUT}/{f}")
size = sum(os.path.getsize(f"{OUT}/{f}") for f in ("model.safetensors", "vqgan/model.safetensors")); print("bytes", size); assert size < 14_000_000
m.load_state_dict({k: x.float() for k, x in load_file(f"{OUT}/model.safetensors").items()})
q = {k: x.float() for k, x in load_file(f"{OUT}/vqgan/model.safetensors").items()}; assert not v.load_state_dict(q, strict=False).unexpected_keys
ims = []; t0 = time.time()
with torch.no_grad():
    for k in range(0, len(PROMPTS), 16):
        z = m.sample(PROMPTS[k:k + 16], S, int(K), T, torch.Generator().manual_seed(1 + k))
        ims += [Image.fromarray((x.permute(1, 2, 0).float().clamp(0, 1).numpy() * 255).round().astype(np.uint8)) for x in v.decode(z)]
grid(ims, PROMPTS).save(PNG); print("seconds per picture", (time.time() - t0) / len(ims), "scale", S, "top_k", K, "temperature", T)
