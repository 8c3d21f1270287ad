#!/usr/bin/env bash
# The same weights give other logits when the metadata of their safetensors file is eight characters longer.
#
# Guess: on one machine, with one thread and one version of everything, logits are a function of the weights and the tokens.
# What happens (torch 2.13.0 with MKL 2024.2, x86 CPU, float32): from_pretrained maps the file, whose data starts at any multiple of
# 8 bytes, and MKL's product of one row (one token: each step of greedy decoding) sums in another order when the weights do not start
# at a multiple of 16 bytes. Weights that were copied (a cast, a gather of ZeRO-3, .clone()) differ from mapped ones likewise. With
# MKL_CBWR=AUTO, which costs no time that can be measured, the bits are equal. Passes over four and more rows were equal always.
# Consequence: set MKL_CBWR=AUTO before the first product where bits are compared.
#
# Output seen (AMD EPYC):
#   torch 2.13.0 transformers 5.23.0 safetensors 0.8.0
#   1 token:  unset: different logits, MKL_CBWR=AUTO: equal
#   8 tokens: unset: equal, MKL_CBWR=AUTO: equal
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
cat > compare.py <<'PYTHON'
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)
plain = LlamaForCausalLM(config)
logits, starts = {}, []
for words in ("", "x" * 8):
    plain.save_pretrained("model")
    save_file(load_file("model/model.safetensors"), "model/model.safetensors", {"format": "pt", "words": words})
    with open("model/model.safetensors", "rb") as file:
        starts.append((8 + int.from_bytes(file.read(8), "little")) % 16)
    model = LlamaForCausalLM.from_pretrained("model").eval()
    for tokens in (1, 8):
        with torch.no_grad():
            logits.setdefault(tokens, []).append(model(torch.arange(5, 5 + tokens).unsqueeze(0)).logits)
assert sorted(starts) == [0, 8]
assert torch.equal(*logits[8])
print("equal" if torch.equal(*logits[1]) else "different")
PYTHON
run() { env "$@" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" compare.py 2>/dev/null; }
"$folder/venv/bin/python" -c "
import torch, transformers, safetensors
print('torch', torch.__version__.split('+')[0], 'transformers', transformers.__version__, 'safetensors', safetensors.__version__)"
unset MKL_CBWR
plain=$(run LANG=C)
reproducible=$(run MKL_CBWR=AUTO)
echo "1 token:  unset: $plain logits, MKL_CBWR=AUTO: $reproducible"
echo "8 tokens: unset: equal, MKL_CBWR=AUTO: equal"
[ "$plain" = different ] && [ "$reproducible" = equal ]
