#!/usr/bin/env bash
# PEFT's add_weighted_adapter with combination_type="linear" does not give the sum of the adapters' changes of the weights.
#
# Guess: "linear" with weights [1, 1] is delta_a + delta_b, as the name says, and the default "svd" is an approximation of it at the
# rank; with [1, -1] it is task arithmetic: the one without the other. Two equal adapters with [.5, .5] and one with [1] agree in any
# case.
# What happens (peft 0.21.2): the factors are combined, not their products: (A1 + A2) and (B1 + B2) are formed with the square roots
# of the weights, so the change has B1 A2 + B2 A1 in it, as large as the sum itself for adapters that have nothing in common. Only
# "cat", which adds the ranks up, is the sum.
# Consequence: use "cat" for sums and differences of adapters, and check the change of a weight before a merged model is trusted.
#
# Output seen: relative distance of the combined change from the weighted sum of the changes, two random adapters of rank 4
#   peft 0.21.2
#   linear: [1, 1] 0.98, [0.5, 0.5] 0.98, [1, -1] 0.95, [1, 0] 0.00
#   cat: [1, 1] 0.00, [0.5, 0.5] 0.00, [1, -1] 0.00, [1, 0] 0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

print("peft", peft.__version__)
config = AutoConfig.for_model(
    "llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
)
settings = LoraConfig(r=4, target_modules=["q_proj"])
model = get_peft_model(AutoModelForCausalLM.from_config(config), settings, adapter_name="a")
model.add_adapter("b", settings)
torch.manual_seed(1)
with torch.no_grad():  # stands for training
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn_like(parameter))
projection = model.base_model.model.model.layers[0].self_attn.q_proj
first, second = (projection.get_delta_weight(name) for name in "ab")
for kind in ("linear", "cat"):
    distances = {}
    for number, weights in enumerate(((1, 1), (0.5, 0.5), (1, -1), (1, 0))):
        model.add_weighted_adapter(["a", "b"], list(map(float, weights)), f"{kind}{number}", combination_type=kind)
        wanted = weights[0] * first + weights[1] * second
        found = projection.get_delta_weight(f"{kind}{number}")
        distances[weights] = ((found - wanted).norm() / wanted.norm()).item()
    print(f"{kind}: " + ", ".join(f"{list(weights)} {distance:.2f}" for weights, distance in distances.items()))
    for weights, distance in distances.items():
        assert (distance > 0.5) == (kind == "linear" and weights != (1, 0)), (kind, weights, distance)
        assert distance > 0.5 or distance < 1e-5
PYTHON
