#!/usr/bin/env bash
# use_cache=False changes the logits of one pass, where position_ids do not rise by one.
#
# Guess: use_cache only says whether keys and values are handed back; a single pass over a prompt computes the same either way. And
# position_ids move rotary phases, and nothing else: a gap of one in the middle of a prompt changes logits a little.
# What happens (transformers 5.24.0, eager and sdpa): where neither an attention mask nor a cache is given, each place at which
# position_ids do not rise by exactly one is taken for the start of another, packed sequence, and attention is cut there. By default
# a cache is made, so nothing is cut; use_cache=False, or gradient checkpointing in training, which switches the cache off, cuts.
# An attention mask of ones brings the attention back. Positions 0 2 4 6 leave every token alone with itself.
# Consequence: for experiments with shifted, stretched or left-out positions pass a mask of ones always; a reference that was computed
# with the cache on is another function than the pass that is trained.
#
# Output seen: largest difference to the logits with the cache and no mask; positions 0 1 2 3 5 6 7 8 of 8 tokens
#   transformers 5.24.0
#   eager: use_cache=False 2.555530, with a mask of ones 0.000000, tail alone against tail of use_cache=False 0.0000
#   sdpa: use_cache=False 2.555530, with a mask of ones 0.000000, tail alone against tail of use_cache=False 0.0000
#   checkpointing in training: 2.555530
#   positions 0 1 2 3 4 5 6 7: use_cache=False 0.000000
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
gap = torch.tensor([[0, 1, 2, 3, 5, 6, 7, 8]])
ones = torch.ones_like(tokens)


def build(attention):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # random models are nearly uniform: make attention matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(model, ids=tokens, **settings):
    return model(ids, **settings).logits.detach()


def apart(a, b):
    return (a - b).abs().max().item()


for attention in ("eager", "sdpa"):
    model = build(attention)
    cached = logits(model, position_ids=gap)
    uncached = logits(model, position_ids=gap, use_cache=False)
    masked = logits(model, position_ids=gap, use_cache=False, attention_mask=ones)
    tail = apart(logits(model, tokens[:, 4:]), uncached[:, 4:])
    print(f"{attention}: use_cache=False {apart(cached, uncached):.6f}, with a mask of ones {apart(cached, masked):.6f}, "
          f"tail alone against tail of use_cache=False {tail:.4f}")
    assert apart(cached, uncached) > 0.5 and apart(cached, masked) < 1e-5 and tail < 1e-5
model.activation_checkpointing_enable()
trained = apart(cached, logits(model.train(), position_ids=gap))
model.eval()
even = torch.arange(8).view(1, 8)
same = apart(logits(model, position_ids=even), logits(model, position_ids=even, use_cache=False))
print(f"checkpointing in training: {trained:.6f}")
print(f"positions 0 1 2 3 4 5 6 7: use_cache=False {same:.6f}")
assert trained > 0.5 and same < 1e-5
PYTHON
