"""CLIP byte-pair vocabularies of any size, written as the files of a diffusers `tokenizer/` folder.

The vocabulary order is CLIP's: 256 bytes, the same 256 with `</w>`, one token per merge, start, end. The merges are the
first ones of `assets/bpe_simple_vocab_16e6.txt.gz`, so 48,894 of them give the tokenizer of the published checkpoints
(49,408 ids) and a few hundred give one whose embedding table is small enough to commit.
"""
import gzip
import json
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MERGES_FILE = REPOSITORY / "assets" / "bpe_simple_vocab_16e6.txt.gz"
CLIP_MERGES = 48894
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet():
    """The printable stand-ins of the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def vocabulary(merge_count):
    """(token -> id, list of merge pairs) with `514 + merge_count` ids."""
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as f:
        lines = f.read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 1 + merge_count]]
    alphabet = byte_alphabet()
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(m) for m in merges] + [START, END]
    assert len(set(tokens)) == len(tokens) == 514 + merge_count
    return {t: i for i, t in enumerate(tokens)}, merges


def _special(content, normalized):
    return dict(content=content, lstrip=False, normalized=normalized, rstrip=False, single_word=False)


def _tokenizer_json(path, vocab, merges):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(START, normalized=True, special=True), AddedToken(END, normalized=False, special=True)])
    t.post_processor = processors.RobertaProcessing((END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False)
    t.save(str(path))


def write_tokenizer(folder, merge_count, pad=END, style="files", length=77):
    """Writes a tokenizer folder; `style` is `files` (vocab.json and merges.txt), `json` (tokenizer.json) or `both`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = vocabulary(merge_count)
    if style in ("files", "both"):
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
        (folder / "merges.txt").write_text(text, encoding="utf-8")
    if style in ("json", "both"):
        _tokenizer_json(folder / "tokenizer.json", vocab, merges)
    names = dict(bos_token=_special(START, True), eos_token=_special(END, True), unk_token=_special(END, True), pad_token=pad)
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=1))
    typed = {k: {"__type": "AddedToken", **v} if isinstance(v, dict) else v for k, v in names.items()}
    config = dict(add_prefix_space=False, do_lower_case=True, errors="replace", model_max_length=length, tokenizer_class="CLIPTokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | typed, indent=1))
    return vocab
