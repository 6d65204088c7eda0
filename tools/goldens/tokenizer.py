"""Golden token ids of transformers' CLIPTokenizer, called as diffusers' pipelines call it.

Writes tests/goldens/tokenizer.json: for every tokenizer (a vocabulary, the way of loading it, its side files) the ids of
every prompt. Run from the repository's root with transformers 5.23 (tokenizers 0.23).
"""

import gzip
import json
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "assets/emoji/tokenizer"
SIDE_FILES = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]

PROMPTS = [
    "",
    " ",
    "\n\t  \r\n",
    "a photo of an astronaut riding a horse on mars",
    "Red Apple, on a BLUE background!",
    "red apple",
    "a cat's and dogs' don't we'll I'm they're we've he'd it's 'S 'Tis",
    "1234567890 3.14 100% 2nd 10x10 v1.5",
    "masterpiece, (best quality:1.2), [detailed|sharp], {{art}} -- by_artist #tag @user $5 & ~/path\\to",
    "hello!!! wow... what?! (yes) \"quoted\" <b>bold</b>",
    "! ! !! a!b",
    "😀😃 grinning face 👩‍👩‍👧‍👦 family 🇩🇪 flag 👍🏽",
    "❤️ red heart ☃ snowman ✨",
    "一只可爱的猫 日本語のテキスト 한국어 텍스트",
    "café cafe\u0301 naïve ﬁne ﬂower ﬀ ﬃ",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３",
    "İstanbul ISPARTA ığdır İİ",
    "ΟΔΥΣΣΕΥΣ Σ ΑΣ ΑΣΑ ὈΔΥΣΣΕΎΣ ς",
    "&lt;tag&gt; &amp;amp; &quot;x&quot; &#39;y&#39; &nbsp;",
    "“curly” ‘quotes’ – dash — em… «guillemets»",
    "line one\nline two\r\nline three\ttabbed  double   triple",
    "\u00a0nbsp\u2003em\u3000ideographic\u2028line\u2029para\u0085nel\u1680ogham\u180emvs\u200bzwsp\ufeffbom",
    "control\x00nul\x01soh\x07bel\x08bs\x0bvt\x0cff\x1besc\x1cfs\x1dgs\x1ers\x1fus\x7fdel\x80pad\x9fapc",
    "<|endoftext|>",
    "<|startoftext|>",
    "before<|endoftext|>after <|startoftext|> more <|EndOfText|> <|STARTOFTEXT|>",
    "<|endoftext|><|endoftext|>  <|startoftext|>x",
    "<|endoftext <|end of text|> |> <|pad|>",
    "Zalgo: h\u0335\u0321e\u0336\u0322l\u0337\u0323l\u0338\u0324o\u0334\u0325",
    "e\u0301 \u0065\u0302 A\u030a ÅÅ \u1e9b\u0323 q\u0307\u0323 q\u0323\u0307",
    "Straße STRASSE ẞ ŉ ǰ ΐ ΰ և ẖ ẗ ẘ ẙ ẚ",
    "½ ¼ ² ³ ¹ ₀ Ⅷ ⅷ ① ⑳ ㊀ ๑๒๓ ١٢٣ १२३",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดี",
    "a-b_c+d=e*f/g|h^i`j~k<l>m[n]o{p}q",
    "'s 't 're 've 'm 'll 'd ''s s' 'sun 'duck 'reveal",
    "don’t can’t it’s",
    "supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbb",
    "....,,,,;;;;!!!!????",
    "http://example.com/?q=1&r=2#frag user@example.com",
    "𝕄𝕒𝕥𝕙 𝓼𝓬𝓻𝓲𝓹𝓽 𝟙𝟚𝟛 𐐀𐐨 🄰",
    "\u202eright-to-left\u202c \u200djoin\u200c \u00adsoft",
    "Ǆ ǅ ǆ ﬀ Ⱥ Ⱦ Ꞻ Ა ა Ꭰ ꭰ",
    "각 \u1100\u1161\u11a8 \uac00\u11a8",
    "ﷺ ㍿ ℡ Å K Ω",
    "a photo of " + "very " * 90 + "big cat",
    "word " * 75,
    "word " * 74,
    "word " * 76 + "tail",
    "comma," * 60 + " İ tail é",
    "x" * 400,
    "😀" * 60,
    "a <|endoftext|> " * 40,
]

SHORT = [
    "",
    "red apple on a blue background!",
    "! a!b !!",
    "x<|endoftext|>y <|STARTOFTEXT|> z<|EndOfText|> <|startoftext|>",
    "my <pad> and <new> token <New> <mask1> <MASK1>",
    "word " * 90 + "end",
    "İ É 😀",
]


def side(name):
    return json.loads((EMOJI / name).read_text())


def bundled():
    """openai/CLIP's vocabulary from its merges (lines 2..48895 of the file)."""
    lines = gzip.open(ROOT / "assets/bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8").read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]
    words = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}, merges


def from_files(use_json, overrides):
    """A directory with the emoji vocabulary and the given side files (None removes one), loaded by from_pretrained."""
    with tempfile.TemporaryDirectory() as where:
        names = ["vocab.json", "merges.txt"] + (["tokenizer.json"] if use_json else [])
        for name in names + ["tokenizer_config.json", "special_tokens_map.json"]:
            if name not in overrides:
                shutil.copy(EMOJI / name, where)
        for name, content in overrides.items():
            if content is not None:
                (Path(where) / name).write_text(json.dumps(content))
        return CLIPTokenizer.from_pretrained(where)


def added(content, **rest):
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, **rest}


def variants():
    config = side("tokenizer_config.json")
    no_map = {"special_tokens_map.json": None}
    yield "config pad !", True, {"tokenizer_config.json": {**config, "pad_token": "!"}, **no_map}
    yield "config pad !, vocab+merges", False, {"tokenizer_config.json": {**config, "pad_token": "!"}, **no_map}
    yield "map overrides config", False, {"special_tokens_map.json": {**side("special_tokens_map.json"), "pad_token": "!"}}
    yield "map with object", True, {
        "special_tokens_map.json": {**side("special_tokens_map.json"), "pad_token": added("!", normalized=False)}
    }
    decoder = {
        "0": {**added("!", normalized=False), "special": True},
        "3070": {**added("<|startoftext|>", normalized=True), "special": True},
        "3071": {**added("<|endoftext|>", normalized=False), "special": True},
        "3072": {**added("<new>", normalized=True), "special": False},
    }
    yield "added_tokens_decoder hides the map", True, {
        "tokenizer_config.json": {**config, "pad_token": "!", "added_tokens_decoder": decoder}
    }
    yield "added_tokens_decoder, vocab+merges", False, {
        "tokenizer_config.json": {**config, "pad_token": "!", "added_tokens_decoder": decoder}
    }
    yield "pad not in the vocabulary", False, {"tokenizer_config.json": {**config, "pad_token": "<pad>"}, **no_map}
    yield "no side files", False, {"tokenizer_config.json": None, **no_map}
    yield "no side files, json", True, {"tokenizer_config.json": None, **no_map}
    yield "left sides", True, {
        "tokenizer_config.json": {**config, "padding_side": "left", "truncation_side": "left"}
    }
    yield "extra tokens", False, {
        "tokenizer_config.json": {**config, "additional_special_tokens": ["<mask1>", "<new>"]},
        "added_tokens.json": {"<mask1>": 3073, "<pad>": 3072},
    }
    yield "stripping token", False, {
        "tokenizer_config.json": {
            **config,
            "pad_token": {"__type": "AddedToken", "content": "<new>", "lstrip": True, "rstrip": True,
                          "normalized": True, "single_word": True},
        },
        **no_map,
    }
    yield "split special tokens", True, {"tokenizer_config.json": {**config, "split_special_tokens": True}}


def ids(tokenizer, prompt, length):
    found = tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
    assert len(found) == length
    while len(found) > 1 and found[-1] == found[-2]:
        found.pop()
    return found


def record(name, tokenizer, prompts, **rest):
    length = rest.pop("length", 77)
    return {
        "name": name,
        **rest,
        "length": length,
        "model_max_length": tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None,
        "pad": tokenizer.pad_token_id,
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "vocab_size": len(tokenizer),
        "prompts": None if prompts is PROMPTS else prompts,
        "ids": [ids(tokenizer, prompt, length) for prompt in prompts],
    }


def main():
    vocab, merges = bundled()
    assert len(vocab) == 49408
    tokenizers = [
        record("bundled, end as padding", CLIPTokenizer(vocab=vocab, merges=merges), PROMPTS, bundled_pad=49407),
        record("bundled, ! as padding", CLIPTokenizer(vocab=vocab, merges=merges, pad_token="!"), PROMPTS, bundled_pad=0),
        record("emoji json", from_files(True, {}), PROMPTS, json=True, side={}),
        record("emoji vocab+merges", from_files(False, {}), PROMPTS, json=False, side={}),
        record("emoji json, 16", from_files(True, {}), SHORT, json=True, side={}, length=16),
        record("emoji json, 2", from_files(True, {}), SHORT, json=True, side={}, length=2),
    ]
    for name, use_json, overrides in variants():
        tokenizers.append(record(name, from_files(use_json, overrides), SHORT, json=use_json, side=overrides, length=24))
    out = {"comment": "made by tools/goldens/tokenizer.py; a list shorter than `length` goes on with its last id",
           "prompts": PROMPTS, "tokenizers": tokenizers}
    path = ROOT / "tests/goldens/tokenizer.json"
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(path.stat().st_size, "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
