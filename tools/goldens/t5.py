"""Writes tests/goldens/t5/: T5 encoders of several shapes against transformers, layer by layer, and the tokenizer's ids.

usage: python tools/goldens/t5.py      (needs the packages sentencepiece and protobuf beside the others)

A folder a case with an encoder in halves and `golden.safetensors` (ids, mask, `hidden.N` in front of layer N, `last`). `emoji.safetensors`
holds ids, mask and last states of the embedded encoder; `spiece` a SentencePiece model with a normalizer's table and texts with their ids;
`buckets.json` the buckets of distances -520 to 520 by "buckets,max_distance", run-length encoded; `rms_norm.safetensors` T5LayerNorm.
"""
import io
import json
import shutil

import sentencepiece
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

from bpe import REPOSITORY
from imagen import WORDS, randomise

FOLDER = REPOSITORY / "tests" / "goldens" / "t5"
CASES = dict(
    gated_gelu=dict(vocab_size=41, d_model=24, d_kv=10, d_ff=50, num_layers=2, num_heads=5, feed_forward_proj="gated-gelu"),
    gated_silu=dict(vocab_size=37, d_model=18, d_kv=7, d_ff=33, num_layers=2, num_heads=2, feed_forward_proj="gated-silu", relative_attention_num_buckets=6, relative_attention_max_distance=9),
    relu=dict(vocab_size=40, d_model=40, d_kv=16, d_ff=21, num_layers=1, num_heads=1, feed_forward_proj="relu", relative_attention_num_buckets=12, relative_attention_max_distance=64),
    gelu=dict(vocab_size=33, d_model=13, d_kv=4, d_ff=29, num_layers=2, num_heads=6, feed_forward_proj="gelu", layer_norm_epsilon=1e-3),
    gelu_new=dict(vocab_size=33, d_model=16, d_kv=12, d_ff=30, num_layers=2, num_heads=3, feed_forward_proj="gelu_new"),
)
TEXTS = ["a red apple on the blue table", "ｒｅｄ ａｐｐｌｅ ﬁsh", "two   cats\tby\nthe sea", "small house ½ ☺ in chalk", "", "red</s> apple", "<extra_id_0> dragon"]


def store(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().clone().contiguous() for k, v in found.items()}, path)


def states(encoder, ids, mask):
    found = encoder(ids, attention_mask=mask, output_hidden_states=True)
    hidden = {f"hidden.{i}": state for i, state in enumerate(found.hidden_states[:-1])}
    return hidden | dict(ids=ids.int(), mask=mask.int(), last=found.last_hidden_state)


def case(name, seed):
    encoder = randomise(transformers.T5EncoderModel(transformers.T5Config(**CASES[name])), seed, 0.7)
    encoder.half().save_pretrained(FOLDER / name)
    encoder.float()
    ids = torch.randint(0, CASES[name]["vocab_size"], (3, 77), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, 20:], mask[1, 1:] = 0, 0
    store(FOLDER / name / "golden.safetensors", states(encoder, ids, mask))
    if name == "gated_gelu":
        # Few tokens, so that small bindings hold everything but the feed-forward part's weights.
        store(FOLDER / name / "short.safetensors", states(encoder, ids[2:, :9], mask[2:, :9]))


def emoji():
    folder = REPOSITORY / "assets" / "emoji-imagen" / "I"
    tokens = transformers.T5TokenizerFast.from_pretrained(folder / "tokenizer")
    made = tokens(["red apple", "grinning cat face with smiling eyes"], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    encoder = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    last = encoder(made.input_ids, attention_mask=made.attention_mask).last_hidden_state
    store(FOLDER / "emoji.safetensors", dict(ids=made.input_ids.int(), mask=made.attention_mask.int(), last=last))


def pieces():
    """The trainer's own table of normal forms takes 240 KB, so a few of its rules stand for it."""
    made = io.BytesIO()
    rules = FOLDER / "rules.tsv"
    forms = {chr(ord(c) - 0x61 + 0xFF41): c for c in "abcdefghijklmnopqrstuvwxyz"} | {"ﬁ": "fi", "½": "1\u20442", "\u3000": " ", "\t": " ", "\n": " "}
    rules.write_text("".join(f"{ord(k):X}\t{' '.join(f'{ord(c):X}' for c in v)}\n" for k, v in forms.items()))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 9 + WORDS), model_writer=made, vocab_size=70, model_type="unigram", normalization_rule_tsv=str(rules),
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )
    rules.unlink()
    folder = FOLDER / "spiece"
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(made.getvalue())
    tokens = transformers.T5Tokenizer.from_pretrained(folder)
    ids = [tokens(text.lower().strip()).input_ids for text in TEXTS]
    (folder / "ids.json").write_text(json.dumps([dict(text=t, ids=i) for t, i in zip(TEXTS, ids)], ensure_ascii=False, indent=1) + "\n")


def buckets():
    found = {}
    for count in [4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64]:
        for most in sorted({count // 4 + 1, 20, 32, 40, 64, 100, 128, 256, 512}):
            runs = []
            for bucket in T5Attention._relative_position_bucket(torch.arange(-520, 521), True, count, most).tolist():
                if runs and runs[-1][0] == bucket:
                    runs[-1][1] += 1
                else:
                    runs.append([bucket, 1])
            found[f"{count},{most}"] = runs
    (FOLDER / "buckets.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


def norm():
    found = {}
    for n, (rows, wide, eps, scale) in enumerate([(7, 20, 1e-6, 1.0), (3, 131, 1e-5, 300.0), (5, 36, 1e-2, 0.05)]):
        layer = T5LayerNorm(wide, eps)
        g = torch.Generator().manual_seed(n)
        x = scale * torch.randn(rows, wide, generator=g)
        layer.weight.data = 1 + 0.3 * torch.randn(wide, generator=g)
        found |= {f"{n}.x": x, f"{n}.weight": layer.weight, f"{n}.y": layer(x), f"{n}.eps": torch.tensor([eps])}
    store(FOLDER / "rms_norm.safetensors", found)


@torch.no_grad()
def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for seed, name in enumerate(CASES):
        case(name, 31 + seed)
    emoji()
    pieces()
    buckets()
    norm()


if __name__ == "__main__":
    main()
