#!/usr/bin/env bash
# transformers 5 loads a tokenizer.json without the normalizer and the pre-tokenizer that are in it, for classes such as GPT2Tokenizer.
#
# Guess: tokenizer.json is the whole tokenizer, as in transformers 4: AutoTokenizer gives the ids that tokenizers.Tokenizer.from_file
# gives, whatever tokenizer_class says, and what save_pretrained wrote comes back as it was.
# What happens (transformers 5.24.0, tokenizers 0.22): where tokenizer_class is one of the library's own (GPT2Tokenizer,
# GPT2TokenizerFast, Qwen2Tokenizer, GPTNeoXTokenizer, CohereTokenizer), vocabulary and merges alone are taken from the file, and
# normalizer and pre-tokenizer are those of the class. A lower-casing GPT-2 tokenizer that transformers itself has saved comes back
# cased, silently. With PreTrainedTokenizerFast, TokenizersBackend or no class the file is used as it is.
# Consequence: set tokenizer_class to TokenizersBackend for a tokenizer that differs from its class, and compare ids with those of the
# tokenizers package before examples are aligned token by token.
#
# Output seen:
#   transformers 5.24.0
#   saved by GPT2Tokenizer: before ['ab', '1', '2'], after loading ['A', 'B', '12'], normalizer None
#   GPT2Tokenizer: as the file says False
#   GPT2TokenizerFast: as the file says False
#   Qwen2Tokenizer: as the file says False
#   GPTNeoXTokenizer: as the file says False
#   CohereTokenizer: as the file says False
#   PreTrainedTokenizerFast: as the file says True
#   TokenizersBackend: as the file says True
#   None: as the file says True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer

print("transformers", transformers.__version__)
symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "12", "<|endoftext|>"]
made = GPT2Tokenizer(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[("a", "b"), ("1", "2")])
made.backend_tokenizer.normalizer = normalizers.Lowercase()
made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
made.save_pretrained("saved")
text = "AB12"
before, loaded = made.tokenize(text), AutoTokenizer.from_pretrained("saved")
after = loaded.tokenize(text)
print(f"saved by GPT2Tokenizer: before {before}, after loading {after}, normalizer {loaded.backend_tokenizer.normalizer}")
assert before == Tokenizer.from_file("saved/tokenizer.json").encode(text).tokens == ["ab", "1", "2"]
assert after == ["A", "B", "12"]
settings = json.loads(Path("saved/tokenizer_config.json").read_text())
OWN = ("GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer", "GPTNeoXTokenizer", "CohereTokenizer")
for name in (*OWN, "PreTrainedTokenizerFast", "TokenizersBackend", None):
    Path("saved/tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": name}))
    same = AutoTokenizer.from_pretrained("saved").tokenize(text) == before
    print(f"{name}: as the file says {same}")
    assert same == (name not in OWN), name
PYTHON
