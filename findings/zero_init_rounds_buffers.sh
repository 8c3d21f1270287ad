#!/usr/bin/env bash
# Inside deepspeed.zero.Init with bf16 on, torch.arange(300, dtype=torch.float32) is bfloat16: position 257 is 256.
#
# Guess: zero.Init divides Parameters, in the dtype of the DeepSpeed config; buffers, and tensors that ask for float32 by name, are
# what the model's code says.
# What happens (deepspeed 0.19.8, transformers 5.24.0): constructors of torch are replaced inside the context, and every
# floating-point tensor that arange, tensor, zeros, ones, full and others make is cast, an explicit dtype notwithstanding; float64
# too. Tables of positions that are computed in __init__ are computed from rounded numbers: a sinusoidal table is off by most of its
# amplitude, and Llama's inv_freq is bfloat16 (.1 becomes .1001: a tenth of a radian at position 1000). Buffers like that are in no
# checkpoint, so loading repairs nothing. Under HfDeepSpeedConfig transformers itself keeps torch.arange as it was; with zero.Init by
# hand, as here, it does not.
# Consequence: after zero.Init compute such buffers anew, or build without bf16 in its config and cast parameters.
#
# Output seen:
#   deepspeed 0.19.8, transformers 5.24.0
#   arange(300, dtype=float32)[256:261]: plain 256 257 258 259 260, inside 256 256 258 260 260, dtype bfloat16
#   tensor([1.], dtype=float64): bfloat16
#   sinusoidal table of 300 positions: largest error above .5: True
#   llama inv_freq: float32 plain, bfloat16 inside, largest relative error above .0005: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 deepspeed==0.19.8 accelerate==1.15.0 numpy==2.4.6 setuptools 2>/dev/null
cat > buffers.py <<'PYTHON'
import os
from importlib.metadata import version

os.environ |= {
    "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29575", "DS_ACCELERATOR": "cpu",
}
import deepspeed
import torch
from deepspeed.ops import __compatible_ops__ as operators
from transformers import AutoConfig, AutoModelForCausalLM

operators["deepspeed_shm_comm"] = False  # nothing is compiled
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
print(", ".join(f"{name} {version(name)}" for name in ("deepspeed", "transformers")))
settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
config = AutoConfig.for_model(
    "llama", vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)


class Sinusoids(torch.nn.Module):
    def __init__(self):
        super().__init__()
        frequencies = 1e4 ** (-torch.arange(0, 32, 2, dtype=torch.float32) / 32)
        self.register_buffer("table", torch.outer(torch.arange(300, dtype=torch.float32), frequencies).sin(), persistent=False)


def made():
    model = AutoModelForCausalLM.from_config(config)
    return torch.arange(300, dtype=torch.float32), torch.tensor([1.0], dtype=torch.float64), Sinusoids().table, model.model.rotary_emb.inv_freq


def short(tensor):
    return str(tensor.dtype).removeprefix("torch.")


def listed(tensor):
    return " ".join(str(int(number)) for number in tensor[256:261])


plain = made()
with deepspeed.zero.Init(config_dict_or_path=settings):
    inside = made()
print(f"arange(300, dtype=float32)[256:261]: plain {listed(plain[0])}, inside {listed(inside[0])}, dtype {short(inside[0])}")
print(f"tensor([1.], dtype=float64): {short(inside[1])}")
table = (plain[2] - inside[2].float()).abs().max().item()
rotary = ((plain[3] - inside[3].float()) / plain[3]).abs().max().item()
print(f"sinusoidal table of 300 positions: largest error above .5: {table > 0.5}")
print(f"llama inv_freq: {short(plain[3])} plain, {short(inside[3])} inside, largest relative error above .0005: {rotary > 5e-4}")
assert listed(inside[0]) == "256 256 258 260 260" and inside[1].dtype == torch.bfloat16 and table > 0.5 and rotary > 5e-4
PYTHON
HF_HUB_OFFLINE=1 PATH="$folder/venv/bin:$PATH" "$folder/venv/bin/python" buffers.py > output 2> errors || { cat errors; exit 1; }
grep -E "^(deepspeed|arange|tensor|sinus|llama)" output
