#!/usr/bin/env bash
# Under ZeRO-3 a layer that runs twice in a forward pass keeps its weights gathered after backward, if the run WITHOUT a graph is the second.
#
# Guess: the weights of a layer are gathered for each use and released after it; a layer that is called twice, once for gradients and
# once for a reference or an ablated stream, costs a second gather, and the order of the two calls is a matter of taste.
# What happens (deepspeed 0.19.8, torch 2.13.0, frozen weights, every limit at 0): with the run without a graph first all is released.
# With it last losses and gradients are the same, but backward releases nothing: after it every rank holds the weights of the whole
# model, until the next forward pass. It makes no difference whether the run is under no_grad or only has an input that needs no
# gradient.
# Consequence: the memory that ZeRO-3 was to save is needed in full at the end of each step; run the stream without gradients first.
#
# Output seen: share of the weights that is gathered after forward, after backward
#   deepspeed 0.19.8
#   once: 0.00 0.00
#   no_grad first: 0.00 0.00
#   no_grad last: 0.00 1.00
#   input without gradient first: 0.00 0.00
#   input without gradient last: 0.00 1.00
#   gradients equal in all: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 deepspeed==0.19.8 numpy==2.4.6 setuptools 2>/dev/null
cat > order.py <<'PYTHON'
import os
from contextlib import nullcontext
from importlib.metadata import version

os.environ |= {
    "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29574", "DS_ACCELERATOR": "cpu",
}
import deepspeed
import torch
from deepspeed.ops import __compatible_ops__ as operators

operators["deepspeed_shm_comm"] = False  # nothing is compiled
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
print("deepspeed", version("deepspeed"))
LIMITS = (
    "stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size",
)
SETTINGS = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3} | dict.fromkeys(LIMITS, 0)}


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    def forward(self, hidden):
        return hidden + self.outer(self.inner(hidden).relu())


class Model(torch.nn.Module):
    def __init__(self, order):
        super().__init__()
        self.layers, self.order = torch.nn.ModuleList(Layer() for _ in range(4)), order

    def forward(self, hidden, beside):
        for layer in self.layers:
            for run in self.order:
                if run == "graph":
                    hidden = layer(hidden)
                else:
                    with torch.no_grad() if run == "no_grad" else nullcontext():
                        beside = layer(beside)
        return (hidden**2).sum()


def share(model):
    """Share of the weights that is whole in memory: a divided parameter has no elements."""
    return sum(p.numel() for p in model.parameters()) / sum(p.ds_numel for p in model.parameters())


ORDERS = {
    "once": ("graph",),
    "no_grad first": ("no_grad", "graph"),
    "no_grad last": ("graph", "no_grad"),
    "input without gradient first": ("plain", "graph"),
    "input without gradient last": ("graph", "plain"),
}
gradients = []
for name, order in ORDERS.items():
    torch.manual_seed(0)
    model = Model(order).requires_grad_(False).eval()
    engine, *_ = deepspeed.initialize(model=model, config=SETTINGS)
    for _ in range(2):  # the first step records the order of the layers
        torch.manual_seed(1)
        hidden, beside = torch.randn(2, 64, requires_grad=True), torch.randn(2, 64)
        loss = engine.module(hidden, beside)
        after_forward = share(model)
        loss.backward()
    print(f"{name}: {after_forward:.2f} {share(model):.2f}")
    gradients.append(hidden.grad)
    assert (after_forward, share(model)) == (0, 1 if name.endswith("last") else 0), name
same = all(torch.equal(gradients[0], one) for one in gradients)
print(f"gradients equal in all: {same}")
assert same
PYTHON
PATH="$folder/venv/bin:$PATH" "$folder/venv/bin/python" order.py > output 2> errors || { cat errors; exit 1; }
grep -E "^(deepspeed|once|no_grad|input|gradients)" output
