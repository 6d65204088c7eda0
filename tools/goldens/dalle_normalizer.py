"""Writes tests/goldens/dalle/normalizer.json: prompts and what dalle-mini's TextNormalizer makes of them.

usage: python tools/goldens/dalle_normalizer.py text.py    (src/dalle_mini/model/text.py of borisdayma/dalle-mini at f0be4de)

Its packages ftfy, emoji and unidecode and its word frequencies are replaced by what scumble does without them: nothing, and the
removal of accents and of what is not ASCII.
"""
import json
import sys
import types
import unicodedata

from bpe import REPOSITORY

PROMPTS = [case[0] for case in json.loads((REPOSITORY / "tests/goldens/dalle/normalizer.json").read_text())]
TYPOGRAPHIC = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "-"})


def ascii_only(text):
    return "".join(c for c in unicodedata.normalize("NFKD", text.translate(TYPOGRAPHIC)) if ord(c) < 128)


source = open(sys.argv[1], encoding="utf-8").read()
lines = [line for line in source.splitlines() if line not in ("import emoji", "import ftfy", "from huggingface_hub import hf_hub_download", "from unidecode import unidecode")]
names = dict(ftfy=types.SimpleNamespace(fix_text=str), emoji=types.SimpleNamespace(demojize=str), unidecode=ascii_only)
exec("\n".join(lines), names)
normalizer = names["TextNormalizer"].__new__(names["TextNormalizer"])
normalizer._hashtag_processor = str
cases = [[prompt, normalizer(prompt)] for prompt in PROMPTS]
(REPOSITORY / "tests/goldens/dalle/normalizer.json").write_text(json.dumps(cases, indent=0))
