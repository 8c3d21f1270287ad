#!/usr/bin/env bash
# In transformers 5.17 Gemma 2 runs with sdpa by default, which leaves the soft cap of its attention out.
#
# Guess: a default `from_pretrained` of Gemma 2 computes what its config says, `attn_logit_softcapping` included, because an attention
# that cannot do it is refused or not chosen (5.23 refuses sdpa for it).
# What happens (transformers 5.17.0): the default is sdpa, without a word, and the cap does nothing: logits with and without it in the
# config are the same tensor. Eager attention applies it. A small cap is used here, because the scores of random weights are small.
# Consequence: for configs with `attn_logit_softcapping` ask for eager attention by name; compare a circuit's model with the release it
# was found under.
#
# Output seen:
#   transformers 5.17.0
#   default: sdpa
#   sdpa, with and without the cap: equal
#   eager, with and without the cap: different
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.17.0 torch==2.13.0
cat > softcap.py <<'PYTHON'
from importlib.metadata import version

import torch
from transformers import AutoModelForCausalLM, Gemma2Config


def build(cap, attention):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=cap, initializer_range=1.0,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def same(attention):
    with torch.no_grad():
        one, other = (build(cap, attention)(torch.arange(12).unsqueeze(0)).logits for cap in (0.05, None))
    return "equal" if torch.equal(one, other) else "different"


print("transformers", version("transformers"))
print("default:", build(0.05, None).config._attn_implementation)
for attention in ("sdpa", "eager"):
    print(f"{attention}, with and without the cap: {same(attention)}")
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" softcap.py > output 2> errors || { cat errors; exit 1; }
cat output
diff output - <<'SEEN'
transformers 5.17.0
default: sdpa
sdpa, with and without the cap: equal
eager, with and without the cap: different
SEEN
