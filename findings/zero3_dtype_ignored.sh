#!/usr/bin/env bash
# Under DeepSpeed ZeRO-3 from_pretrained(dtype=bfloat16) holds float32 weights, twice the memory, while the config says bfloat16.
#
# Guess: dtype= decides in which dtype weights are held, whether they are divided over ranks or not; the bf16 section of the DeepSpeed
# config is about training (casts, loss scale, optimizer), and an inference-only config does without it.
# What happens (transformers 5.24.0, deepspeed 0.19.8): while an HfDeepSpeedConfig of stage 3 without "bf16" or "fp16" is alive, a
# bfloat16 checkpoint that is loaded with dtype=torch.bfloat16 is divided in float32, and model.config.dtype is bfloat16 all the same.
# With {"bf16": {"enabled": true}} even dtype=torch.float32 gives bfloat16. The DeepSpeed config alone decides.
# Consequence: a job that was planned at two bytes a weight needs four; look at parameter.ds_tensor.dtype after loading, not at the
# config.
#
# Output seen: dtype asked, section of the DeepSpeed config -> dtype of the pieces, of the config, bytes of the pieces
#   transformers 5.24.0, deepspeed 0.19.8
#   bfloat16, none -> float32, config bfloat16, 78464 bytes
#   bfloat16, bf16 -> bfloat16, config bfloat16, 39232 bytes
#   float32, bf16 -> bfloat16, config float32, 39232 bytes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 deepspeed==0.19.8 accelerate==1.15.0 numpy==2.4.6 setuptools 2>/dev/null
cat > load.py <<'PYTHON'
import os
from importlib.metadata import version

os.environ |= {
    "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29573", "DS_ACCELERATOR": "cpu",
}
import deepspeed
import torch
from deepspeed.ops import __compatible_ops__ as operators
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

operators["deepspeed_shm_comm"] = False  # nothing is compiled
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
print(", ".join(f"{name} {version(name)}" for name in ("transformers", "deepspeed")))
config = AutoConfig.for_model(
    "llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained("model")


def short(dtype):
    return str(dtype).removeprefix("torch.")


found = []
for asked, section in ((torch.bfloat16, None), (torch.bfloat16, "bf16"), (torch.float32, "bf16")):
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    alive = HfDeepSpeedConfig(settings | ({section: {"enabled": True}} if section else {}))
    model = AutoModelForCausalLM.from_pretrained("model", dtype=asked)
    pieces = [parameter.ds_tensor for parameter in model.parameters()]
    (held,) = {piece.dtype for piece in pieces}
    size = sum(piece.numel() * piece.element_size() for piece in pieces)
    print(f"{short(asked)}, {section or 'none'} -> {short(held)}, config {short(model.config.dtype)}, {size} bytes")
    found.append(held)
    del alive
assert found == [torch.float32, torch.bfloat16, torch.bfloat16]
PYTHON
HF_HUB_OFFLINE=1 PATH="$folder/venv/bin:$PATH" "$folder/venv/bin/python" load.py > output 2> errors || { cat errors; exit 1; }
grep -E "^(transformers|bfloat16|float32)" output
