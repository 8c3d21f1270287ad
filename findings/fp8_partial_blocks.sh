#!/usr/bin/env bash
# FP8 weights whose size is no multiple of the block are dequantised with blocks of another size, silently.
#
# Guess: config.json says weight_block_size [128, 128], so a weight of 192 rows has scales for its rows 0-127 and 128-191, and
# from_pretrained dequantises it so, as the FP8 kernels do.
# What happens (transformers 5.23.0, where there is no GPU, or with dequantize=True): the size of a block is taken from the shapes,
# rows of the weight / rows of the scales = 192 / 2 = 96. Rows 96-127 get the scale of the second block, without a warning. Only where
# that division leaves a rest (576 rows, 5 scales) an error is raised.
# Consequence: compare rows / rows of the scales with the block before such weights are loaded.
#
# Output seen:
#   transformers 5.23.0
#   largest weight 1.000, largest error by blocks of 128: 0.500, by blocks of 96: 0.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import json

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

print("transformers", transformers.__version__)
config = AutoConfig.for_model(
    "llama", vocab_size=64, hidden_size=128, intermediate_size=192, num_hidden_layers=1, num_attention_heads=4
)
AutoModelForCausalLM.from_config(config).save_pretrained("model")
tensors = load_file("model/model.safetensors")
for key in [key for key in tensors if key.endswith("_proj.weight")]:
    rows, columns = (-(-size // 128) for size in tensors[key].shape)
    tensors[key] = torch.ones(tensors[key].shape).to(torch.float8_e4m3fn)
    tensors[f"{key}_scale_inv"] = torch.tensor([1.0, 0.5])[:rows].unsqueeze(1).repeat(1, columns)
save_file(tensors, "model/model.safetensors", {"format": "pt"})
settings = json.load(open("model/config.json"))
settings["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128], "dequantize": True}
json.dump(settings, open("model/config.json", "w"))
model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
found = model.model.layers[0].mlp.up_proj.weight[:, 0]
errors = {}
for block in (128, 96):
    expected = torch.where(torch.arange(192) < block, 1.0, 0.5)
    errors[block] = (found - expected).abs().max().item()
print(f"largest weight {found.max():.3f}, largest error by blocks of 128: {errors[128]:.3f}, by blocks of 96: {errors[96]:.3f}")
assert errors == {128: 0.5, 96: 0.0}
PYTHON
