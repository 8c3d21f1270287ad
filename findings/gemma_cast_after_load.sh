#!/usr/bin/env bash
# Gemma: loading a bfloat16 checkpoint in float32 is not loading it in bfloat16 and casting the model to float32.
#
# Guess: a cast of bfloat16 weights to float32 is exact, so from_pretrained(dtype=float32) and from_pretrained(dtype=bfloat16).float()
# are the same model, as they are for Llama and Qwen 3, and memory can be saved by casting layer by layer after loading.
# What happens (transformers 5.23.0): every parameter is equal, but Gemma 1, 2 and 3 scale embeddings by a BUFFER embed_scale =
# sqrt(hidden_size) that is made in the dtype of loading and is not in the checkpoint. Loaded in bfloat16 it is rounded (24 -> 4.89898
# becomes 4.90625; for the real 1152 of Gemma 3 1B 33.941 becomes 34.0), and a cast of the model keeps the rounded number.
# Consequence: a tool that reads weights in the dtype of their files and casts them itself (weights mapped from files, sharded or
# streamed) gets other logits for this family only; buffers have to come from a model that was made in the dtype of computation.
#
# Output seen:
#   transformers 5.23.0
#   llama: parameters equal True, buffers that differ [], logits equal True
#   qwen3: parameters equal True, buffers that differ [], logits equal True
#   gemma: parameters equal True, buffers that differ ['model.embed_tokens.embed_scale'], logits equal False
#   gemma2: parameters equal True, buffers that differ ['model.embed_tokens.embed_scale'], logits equal False
#   gemma3_text: parameters equal True, buffers that differ ['model.embed_tokens.embed_scale'], logits equal False
#   embed_scale: 4.89898 in float32, 4.90625 after bfloat16
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
sizes = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, "use_cache": False,
}
tokens = torch.arange(3, 11).view(1, 8)
for name in ("llama", "qwen3", "gemma", "gemma2", "gemma3_text"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **sizes)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(name)
    loaded = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    cast = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).float().eval()
    pairs = zip(loaded.named_parameters(), cast.named_parameters(), strict=True)
    parameters = all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    others = dict(cast.named_buffers())
    differ = [key for key, value in loaded.named_buffers() if not torch.equal(value, others[key])]
    with torch.no_grad():
        logits = torch.equal(loaded(tokens).logits, cast(tokens).logits)
    print(f"{name}: parameters equal {parameters}, buffers that differ {differ}, logits equal {logits}")
    is_gemma = name.startswith("gemma")
    wanted = ["model.embed_tokens.embed_scale"] if is_gemma else []
    assert parameters and differ == wanted and logits == (not is_gemma), name
a, b = (float(model.model.embed_tokens.embed_scale) for model in (loaded, cast))
print(f"embed_scale: {a:.5f} in float32, {b:.5f} after bfloat16")
assert abs(a - 24**0.5) < 1e-6 and b == 4.90625
PYTHON
