"""The T5 side: unigram tokenizer from the captions, encoder pretrained on the pictures' principal components. usage: text.py SECONDS"""
from data import *
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, decoders, processors, trainers

TOK = f"{WORK}/t5"; NV = 2048; LEN = 77


def tokenizer():
    p = f"{TOK}/tokenizer.json"
    if os.path.exists(p): return Tokenizer.from_file(p)
    os.makedirs(TOK, exist_ok=True)
    items = load()[2]; rng = np.random.default_rng(0); corpus = []
    for it in items:
        corpus += [it["name"]] * 4 + it["keywords"] + [caption(it, NAMES[rng.integers(len(NAMES))], rng, 0) for _ in range(2)]
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.NFKC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")])
    t.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    sp = ["<pad>", "</s>", "<unk>"]
    t.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=NV, special_tokens=sp, unk_token="<unk>", show_progress=False, initial_alphabet=[chr(c) for c in range(33, 127)]))
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    assert [t.token_to_id(x) for x in sp] == [0, 1, 2], t.get_vocab_size()
    t.save(p)
    json.dump({"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0, "additional_special_tokens": [], "model_max_length": LEN, "clean_up_tokenization_spaces": False}, open(f"{TOK}/tokenizer_config.json", "w"), indent=2)
    json.dump({"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}, open(f"{TOK}/special_tokens_map.json", "w"), indent=2)
    return t


def make(load_it=True):
    from transformers import T5Config, T5EncoderModel
    torch.manual_seed(0)
    m = T5EncoderModel(T5Config(vocab_size=NV, d_model=128, d_kv=32, d_ff=256, num_layers=3, num_decoder_layers=3, num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0., relative_attention_num_buckets=32,
                                relative_attention_max_distance=128, layer_norm_epsilon=1e-6, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False))
    if load_it: m.load_state_dict(torch.load(f"{WORK}/t5.pt"))
    return m


TOKENS = tokenizer()


def ids_of(caps):
    t = np.zeros((len(caps), LEN), np.int64)
    for j, e in enumerate(TOKENS.encode_batch(list(caps))):
        q = e.ids[:LEN - 1]; q = q if q and q[-1] == 1 else q + [1]; t[j, :len(q)] = q
    return torch.from_numpy(t)


def states(m, caps):
    i = ids_of(caps); return m(input_ids=i, attention_mask=(i > 0).long())[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    m = make(False); d = Data(32, .6, 1); print(TOKENS.get_vocab_size(), TOKENS.encode("red apple on a blue background").tokens)
    pretrain(lambda c: (states(m, c), torch.ones(len(c), LEN)), list(m.parameters()), 128, float(sys.argv[1]), d)
    torch.save(m.state_dict(), f"{WORK}/t5.pt")
