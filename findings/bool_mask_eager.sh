#!/usr/bin/env bash
# A boolean attention mask [rows, 1, queries, keys] masks with sdpa; with eager attention it adds 1 to scores and blocks nothing.
#
# Guess: True is "may attend" in both, as in torch's own attention; or the implementation that cannot use it refuses it. Switching
# from sdpa to eager, to read attention patterns, changes logits by rounding only.
# What happens (transformers 5.24.0): a mask of four dimensions is handed through as it is. sdpa takes booleans as a mask. Eager
# attention adds it to the scores, True as 1 and False as 0: later tokens are seen, and a knocked-out edge is merely e times weaker. A
# causal mask of whole numbers is an error in sdpa and is added in eager; zeros and -inf in float work in both. Masks of two
# dimensions are not concerned.
# Consequence: attention knockouts and tree or packed masks must be additive floats; a test with sdpa does not show it.
#
# Output seen: largest change of the first token's logits when later tokens change; largest difference from the plain causal pass
#   transformers 5.24.0
#   llama sdpa: bool 0.000 0.000, float of 0 and -inf 0.000 0.000
#   llama eager: bool 2.147 1.121, float of 0 and -inf 0.000 0.000
#   qwen3 sdpa: bool 0.000 0.000, float of 0 and -inf 0.000 0.000
#   qwen3 eager: bool 2.247 1.494, float of 0 and -inf 0.000 0.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

print("transformers", transformers.__version__)
tokens = torch.arange(3, 11).view(1, 8)
others = torch.cat([tokens[:, :1], tokens[:, 1:] + 20], 1)  # the same first token
causal = torch.ones(8, 8).tril().bool().view(1, 1, 8, 8)
MASKS = {"bool": causal, "float of 0 and -inf": torch.where(causal, 0.0, float("-inf"))}


@torch.no_grad()
def measure(kind, attention, mask):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():  # random models are nearly uniform: make attention matter
        parameter.add_(0.1 * torch.randn_like(parameter))
    first, second = (model(ids, attention_mask=mask).logits for ids in (tokens, others))
    return (first - second)[0, 0].abs().max().item(), (first - model(tokens).logits).abs().max().item()


for kind in ("llama", "qwen3"):
    for attention in ("sdpa", "eager"):
        found = {name: measure(kind, attention, mask) for name, mask in MASKS.items()}
        print(f"{kind} {attention}: " + ", ".join(f"{name} {future:.3f} {apart:.3f}" for name, (future, apart) in found.items()))
        for name, values in found.items():
            leaks = attention == "eager" and name == "bool"
            assert all((value > 0.1) == leaks for value in values), (kind, attention, name, values)
PYTHON
