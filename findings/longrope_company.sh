#!/usr/bin/env bash
# longrope (Phi-3, Phi-4 mini): the logits of a prompt depend on how long the OTHER prompts of its batch are.
#
# Guess: with padding, an attention mask and explicit position ids the rows of a batch do not influence each other beyond rounding,
# so a short prompt may share a batch with any other; and each row, or each position, takes its own set of rotary factors.
# What happens (transformers 5.23.0): the set of factors, short or long, is chosen once for the whole batch by the largest position
# in it. One row longer than original_max_position_embeddings moves all short rows to the long factors: here by .4 in the logits of a
# short row, where company of the same side moves them by rounding only. The chosen frequencies then stay on the module until the
# next pass chooses again.
# Consequence: evaluations of such models that sort or shuffle prompts into batches are not reproducible across batch sizes; a tool
# has to keep both sides of the boundary out of one batch, or refuse.
#
# Output seen:
#   transformers 5.23.0
#   company of 12 tokens: largest difference in the short row 0.000001
#   company of 24 tokens, beyond 16: largest difference in the short row 0.435011
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

print("transformers", transformers.__version__)
torch.manual_seed(0)
config = AutoConfig.for_model(
    "phi3", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=64, original_max_position_embeddings=16, pad_token_id=0, use_cache=False,
    rope_parameters={
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
    },
)
model = AutoModelForCausalLM.from_config(config).eval()
with torch.no_grad():
    for parameter in model.parameters():  # random models are nearly uniform: make attention matter
        parameter.add_(0.1 * torch.randn_like(parameter))
short = torch.arange(3, 11)


def beside(length):
    """Logits of the short prompt in a batch with another one of so many tokens, padded on the right."""
    tokens = torch.zeros(2, max(length, 8), dtype=torch.long)
    tokens[0, :8], tokens[1, :length] = short, torch.arange(20, 20 + length) % 60 + 3
    mask = torch.zeros_like(tokens)
    mask[0, :8], mask[1, :length] = 1, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits[0, :8]


alone = beside(8)
same, other = ((beside(length) - alone).abs().max().item() for length in (12, 24))
print(f"company of 12 tokens: largest difference in the short row {same:.6f}")
print(f"company of 24 tokens, beyond 16: largest difference in the short row {other:.6f}")
assert same < 1e-5 < 1e-2 < other
PYTHON
