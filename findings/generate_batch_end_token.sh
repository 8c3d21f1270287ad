#!/usr/bin/env bash
# generate and generate_batch of transformers read eos_token_id=None in opposite ways, and the second changes the caller's GenerationConfig.
#
# Guess: continuous batching is the same greedy decoding, faster: with the same GenerationConfig both give the same tokens, and a
# config that is passed is only read.
# What happens (transformers 5.24.0): eos_token_id=None means "the model's own" to generate, which stops there, and "none" to
# generate_batch, which says so in a warning and goes on to max_new_tokens. It also writes -1 into the object that was passed, so that
# a later generate with the same object no longer stops either, nor one of another model that has the object.
# Consequence: give eos_token_id a number, and each call a GenerationConfig of its own; texts of the two are else of different
# lengths.
#
# Output seen: number of new tokens of the prompt that reaches the end token, of 8 at most
#   transformers 5.24.0
#   mistral: generate 4, generate_batch 8, generate again with the same config 8; eos_token_id of the config -1
#   mistral, eos_token_id=2: generate 4, generate_batch 4, generate again with the same config 4; eos_token_id of the config 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6
cat > both.py <<'PYTHON'
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

print("transformers", transformers.__version__)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(
    "mistral", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=128,
), attn_implementation="eager").eval()
with torch.no_grad():
    for parameter in model.parameters():  # random models are nearly uniform: make the context matter
        parameter.add_(0.2 * torch.randn_like(parameter))


def settings(end):
    return GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=end)


@torch.no_grad()
def plain(prompt, config):
    return len(model.generate(torch.tensor([prompt]), generation_config=config)[0]) - len(prompt)


def batched(prompt, config):
    (found,) = model.generate_batch([prompt], generation_config=config, progress_bar=False).values()
    return len(found.generated_tokens)


prompts = [[first, second, third] for first in range(3, 11) for second in range(11, 20) for third in range(20, 30)]
prompt = next(ids for ids in prompts if 2 < plain(ids, settings(2)) < 6)  # one that reaches the end token after some steps
lengths = {}
for end in (None, 2):
    config = settings(end)
    lengths[end] = (plain(prompt, config), batched(prompt, config), plain(prompt, config))
    first, second, third = lengths[end]
    print(f"mistral{'' if end is None else f', eos_token_id={end}'}: generate {first}, generate_batch {second}, generate again with the "
          f"same config {third}; eos_token_id of the config {config.eos_token_id}")
    assert config.eos_token_id == (-1 if end is None else 2)
stopped = lengths[2][0]
assert lengths == {None: (stopped, 8, 8), 2: (stopped,) * 3}, lengths
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" both.py 2> errors | grep -E "^(transformers|mistral)" || { cat errors; exit 1; }
