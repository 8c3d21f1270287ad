#!/usr/bin/env bash
# A checkpoint whose weights are int8, without the scales that go with them, loads as a float model of whole numbers, silently.
#
# Guess: from_pretrained knows which dtypes a config can hold and refuses, or at least warns about, integer weights for a float
# module when config.json has no quantization_config; output_loading_info lists what did not fit.
# What happens (transformers 5.23.0): the integers are cast to float (-127.0 .. 127.0), missing_keys, unexpected_keys and
# mismatched_keys are empty, no warning names the tensors, and the model computes. float8 weights without their scales load the same
# way. Such folders come about when somebody strips an unsupported quantization_config from config.json to get a model loaded.
# Consequence: the dtypes in the safetensors headers have to be looked at; what is loaded does not tell.
#
# Output seen:
#   transformers 5.23.0
#   int8: missing 0, unexpected 0, mismatched 0; q_proj is torch.float32, largest weight 127.0; finite logits True
#   float8_e4m3fn: missing 0, unexpected 0, mismatched 0; q_proj is torch.float32, largest weight 448.0; finite logits True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

print("transformers", transformers.__version__)
torch.manual_seed(0)
config = AutoConfig.for_model(
    "llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
plain = AutoModelForCausalLM.from_config(config)
for dtype, top in ((torch.int8, 127), (torch.float8_e4m3fn, 448)):
    name = str(dtype).removeprefix("torch.")
    plain.save_pretrained(name)
    tensors = load_file(f"{name}/model.safetensors")
    for key, value in tensors.items():
        if "_proj" in key:  # scaled to the range of the format; the scale is lost
            tensors[key] = (value / value.abs().max() * top).to(dtype)
    save_file(tensors, f"{name}/model.safetensors", {"format": "pt"})
    model, info = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    weight = model.model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        finite = bool(model(torch.arange(8).view(1, 8)).logits.isfinite().all())
    counts = [len(info[f"{kind}_keys"]) for kind in ("missing", "unexpected", "mismatched")]
    print(f"{name}: missing {counts[0]}, unexpected {counts[1]}, mismatched {counts[2]}; q_proj is {weight.dtype}, "
          f"largest weight {float(weight.abs().max())}; finite logits {finite}")
    assert counts == [0, 0, 0] and weight.dtype == torch.float32 and float(weight.abs().max()) == top and finite
PYTHON
