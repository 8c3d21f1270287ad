#!/usr/bin/env bash
# transformers 5.24 hands the cache out under three names, takes it back under two, and drops the third without a word.
#
# Guess: `past_key_values` and `cache_params` are deprecated spellings of `cache` from 5.24 on, on the way out as on the way in; a keyword
# that a forward does not know raises TypeError. And hasattr(output, "cache_params") still tells a recurrent model from a Transformer.
# What happens (transformers 5.24.0): every output has all three attributes. Llama takes `cache` and `past_key_values`, Mamba 2 takes
# `cache` and `cache_params`; the other name, like any misspelt keyword, goes into **kwargs and is dropped. The step then runs without
# any context: finite logits, no error, no warning about it, and the cache does not grow. Code written for 5.24, `cache=`, does the
# same under 5.23 and below.
# Consequence: loops that choose the keyword by what the output has generate from single tokens; check that the cache grows.
#
# Output seen: largest difference from the logits of the whole prompt, and length of the cache, after 5 tokens at once and 3 by one
#   transformers 5.24.0
#   llama, output has cache past_key_values cache_params
#     given as cache: 0.0000, past_key_values: 0.0000, cache_params: 0.7922, typo: 0.7922; cache grows to 8 8 5 5
#   mamba2, output has cache past_key_values cache_params
#     given as cache: 0.0000, past_key_values: 1.8865, cache_params: 0.0000, typo: 1.8865
#   transformers 5.23.0
#   llama, output has past_key_values
#     given as cache: 0.7922, past_key_values: 0.0000, cache_params: 0.7922, typo: 0.7922; cache grows to 5 8 5 5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
cat > names.py <<'PYTHON'
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

new = transformers.__version__ == "5.24.0"
print("transformers", transformers.__version__)
NAMES = ("cache", "past_key_values", "cache_params", "typo")
MAMBA = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2}
TAKES = {"llama": {"cache", "past_key_values"}, "mamba2": {"cache", "cache_params"}} if new else {"llama": {"past_key_values"}}
tokens = torch.arange(3, 11).view(1, 8)


@torch.no_grad()
def in_steps(model, name):
    """Logits of the last three tokens, one at a time after the first five, and the length of the cache."""
    output = model(tokens[:, :5], use_cache=True)
    cache = next(found for found in (getattr(output, one, None) for one in NAMES) if found is not None)
    steps = [model(tokens[:, place : place + 1], use_cache=True, **{name: cache}).logits for place in range(5, 8)]
    return torch.cat(steps, 1), cache.get_seq_length() if model.config.model_type == "llama" else None


for kind, taken in TAKES.items():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1}
    more = MAMBA if kind == "mamba2" else {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | more | {"eos_token_id": 2}))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # random models are nearly uniform: make the context matter
            parameter.add_(0.05 * torch.randn_like(parameter))
        whole, first = model(tokens).logits[:, 5:], model(tokens[:, :5], use_cache=True)
    has = [name for name in NAMES if hasattr(first, name)]
    print(f"{kind}, output has {' '.join(has)}")
    assert has == (list(NAMES[:3]) if new else ["past_key_values"])
    apart, lengths = {}, []
    for name in NAMES:
        logits, length = in_steps(model, name)
        apart[name] = (logits - whole).abs().max().item()
        lengths.append(length)
        assert (apart[name] < 1e-4) == (name in taken), (kind, name, apart)
    grows = f"; cache grows to {' '.join(map(str, lengths))}" if kind == "llama" else ""
    print("  given as " + ", ".join(f"{name}: {value:.4f}" for name, value in apart.items()) + grows)
    assert kind != "llama" or lengths == [8 if name in taken else 5 for name in NAMES]
PYTHON
for release in 5.24.0 5.23.0; do
    "$folder/venv/bin/pip" install -q torch==2.13.0 "transformers==$release" numpy==2.4.6
    HF_HUB_OFFLINE=1 "$folder/venv/bin/python" names.py 2> errors || { cat errors; exit 1; }
done
