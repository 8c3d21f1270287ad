#!/usr/bin/env bash
# Copying another checkpoint over the file of a model that is already loaded turns the loaded model into the other one.
#
# Guess: after from_pretrained the model is in memory; what happens to its folder concerns the next load. (As it does on a GPU, and as
# it did when checkpoints were pickles.)
# What happens (transformers 5.24.0, safetensors 0.8.0, Linux, CPU): parameters in the dtype of the file are views of the mapped file,
# and stay so. `cp`, shutil.copyfile and rsync --inplace write into the same file, so the next pass computes with the new weights: the
# logits are those of the other model, bit for bit, without an error. It goes for safetensors' load_file with assign=True too. A model
# that was loaded in another dtype, or whose weights were copied, stays. save_pretrained puts a new file in the place of the old one,
# and does no harm.
# Consequence: a job that evaluates `latest/` on CPU while a trainer copies into it scores a mixture of two checkpoints. Write beside
# and rename; or clone the parameters after loading.
#
# Output seen: the logits of the model in memory after another checkpoint was written to its folder
#   transformers 5.24.0, safetensors 0.8.0
#   shutil.copyfile: from_pretrained other, load_file with assign other, load_file copied own, from_pretrained in bfloat16 own
#   cp: from_pretrained other, load_file with assign other, load_file copied own, from_pretrained in bfloat16 own
#   save_pretrained: from_pretrained own, load_file with assign own, load_file copied own, from_pretrained in bfloat16 own
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 safetensors==0.8.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import shutil
import subprocess

import safetensors
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

print(f"transformers {transformers.__version__}, safetensors {safetensors.__version__}")
tokens, name = torch.arange(3, 11).view(1, 8), "model.safetensors"


def made(seed):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    ))


def from_file(assign):
    model = made(2)
    model.load_state_dict(load_file(f"own/{name}"), assign=assign)
    return model


def logits(model):
    with torch.no_grad():
        return model(tokens).logits


LOADERS = {
    "from_pretrained": lambda: AutoModelForCausalLM.from_pretrained("own"),
    "load_file with assign": lambda: from_file(assign=True),
    "load_file copied": lambda: from_file(assign=False),
    "from_pretrained in bfloat16": lambda: AutoModelForCausalLM.from_pretrained("own", dtype=torch.bfloat16),
}
WRITERS = {
    "shutil.copyfile": lambda: shutil.copyfile(f"other/{name}", f"own/{name}"),
    "cp": lambda: subprocess.run(["cp", f"other/{name}", f"own/{name}"], check=True),
    "save_pretrained": lambda: made(1).save_pretrained("own"),
}
made(1).save_pretrained("other")
other = logits(AutoModelForCausalLM.from_pretrained("other"))
for writer, write in WRITERS.items():
    made(0).save_pretrained("own")
    models = {loader: load() for loader, load in LOADERS.items()}
    before = {loader: logits(model) for loader, model in models.items()}
    write()
    found = {}
    for loader, model in models.items():
        now = logits(model)
        found[loader] = "own" if torch.equal(now, before[loader]) else "other" if torch.equal(now, other) else "neither"
    print(f"{writer}: " + ", ".join(f"{loader} {whose}" for loader, whose in found.items()))
    mapped = "own" if writer == "save_pretrained" else "other"
    assert list(found.values()) == [mapped, mapped, "own", "own"], (writer, found)
PYTHON
