#!/usr/bin/env bash
# output_hidden_states misses what a forward hook did to a layer's output, if hidden states were asked for once before.
#
# Guess: `hidden_states[i + 1]` is what layer i hands to layer i + 1, so a forward hook that ablates or steers layer i is seen there,
# whenever it was registered: the logits of the same pass show it in any case.
# What happens (transformers 5.24.0): the first call with output_hidden_states=True leaves recording hooks on the layers for good.
# Hooks run in the order of registration: one registered before that call is seen, one registered after it is not. The logits follow
# the changed output, `hidden_states[i + 1]` is the unchanged one, and `hidden_states[i + 2]` is computed from the changed one again.
# Consequence: the usual order of an experiment, a plain pass for the baseline and then one with hooks, reads the layer's activation
# from before the intervention, without a sign. Read it in a hook of your own, register with prepend=True, or load the model anew.
#
# Output seen: logits moved / norm of hidden_states[1], where a hook makes the output of layer 0 zero
#   transformers 5.24.0
#   hook before the first pass with hidden states: llama True 0.0, gpt2 True 0.0, qwen3 True 0.0, gpt_neox True 0.0
#   hook after a pass without hidden states: llama True 0.0, gpt2 True 0.0, qwen3 True 0.0, gpt_neox True 0.0
#   hook after a pass with hidden states: llama True 0.4, gpt2 True 0.5, qwen3 True 0.4, gpt_neox True 0.4
#   the same, prepend=True: llama True 0.0, gpt2 True 0.0, qwen3 True 0.0, gpt_neox True 0.0
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
TYPES = {"llama": "layers", "gpt2": "h", "qwen3": "layers", "gpt_neox": "layers"}
tokens = torch.arange(3, 11).view(1, 8)


def zero(module, inputs, output):
    return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0


@torch.no_grad()
def recorded(name, earlier, prepend=False):
    """Whether the hook moves the logits, and the norm of what is recorded as the output of the layer that it makes zero."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        name, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for asked in earlier:
        plain = model(tokens, output_hidden_states=asked)
    if not earlier:
        torch.manual_seed(0)
        plain = AutoModelForCausalLM.from_config(config).eval()(tokens)
    getattr(model.base_model, TYPES[name])[0].register_forward_hook(zero, prepend=prepend)
    found = model(tokens, output_hidden_states=True)
    return not torch.equal(found.logits, plain.logits), found.hidden_states[1].norm().item()


CASES = {
    "hook before the first pass with hidden states": ((), False),
    "hook after a pass without hidden states": ((False,), False),
    "hook after a pass with hidden states": ((True,), False),
    "the same, prepend=True": ((True,), True),
}
for what, (earlier, prepend) in CASES.items():
    results = {name: recorded(name, earlier, prepend) for name in TYPES}
    print(f"{what}: " + ", ".join(f"{name} {moved} {norm:.1f}" for name, (moved, norm) in results.items()))
    stale = earlier == (True,) and not prepend
    assert all(moved and (norm > 0.1) == stale for moved, norm in results.values()), what
PYTHON
