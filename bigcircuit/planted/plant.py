"""Widen a model with decoys and shared originals; the docstring of the package defines both and proves that logits stay equal.

Shapes: L layers, G key/value groups, Q query heads a group, d head size, F MLP neurons, D hidden size, n nodes of a granularity.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.circuit.metadata import model_metadata
from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.gates.discretise import Masks
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.granularity import GRANULARITIES, LEAVES, LayerShape
from bigcircuit.model.sites import find_sites
from bigcircuit.planted.decoys import NEEDED, Sampler, fill, writes
from bigcircuit.planted.weights import LayerWeights, build_wide_model, read_layers, repeat_hidden

Kinds = dict[str, list[list[str]]]
"""`head`, `attention_neuron` or `mlp_neuron`, of a mixture `expert` -> the kind of every node, [L][n]."""
LayerKinds = dict[str, list[str]]
"""The same for one layer, [n]."""


class Planted(NamedTuple):
    """A widened model on disk, and the circuit to be found in it."""

    folder: Path
    truth: Masks
    """Granularity -> bool [L, n]; also in `truth/circuit.safetensors`."""
    kinds: Kinds


def plant(
    model: Any,
    folder: Path,
    seed: int,
    *,
    times: int = 3,
    shared: float = 0.2,
    needed: Mapping[str, Tensor] | None = None,
    tokenizer: Any = None,
) -> Planted:
    """Widen a model and save it as an ordinary transformers folder; its logits equal those of `model`.

    times: factor on the number of MLP neurons, and at least that on the number of heads. shared: share of the needed groups and
    neurons of a layer that are split into two copies, at least one unless the share is 0. needed: `attention_neuron` and
    `mlp_neuron` masks [L, n] of the originals that are the truth, by default all; the other originals must write zero and are
    replaced. Raises UserError for architectures that cannot be widened, and where these other originals write.
    """
    frozen = find_sites(model)
    repeats = times if model.config.model_type == "gpt2" else 1  # there the hidden size is heads x head size
    times_heads = times if repeats > 1 else _allowed(model.config, times)
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    unread = all(isinstance(module, nn.LayerNorm) for module in norms)
    sampler = Sampler(random.Random(seed), torch.Generator().manual_seed(seed), unread, shared)
    layers, kinds = [], []
    for index, weights in enumerate(repeat_hidden(read_layers(frozen), repeats)):
        attention, mlp = _originals(needed, index, frozen.shapes[index])
        weights, of_heads = _widen_attention(weights, attention, times_heads, sampler)
        weights, of_neurons = _widen_mlp(weights, mlp, times, sampler)
        layers.append(weights)
        kinds.append(of_heads | of_neurons)
    return save_planted(build_wide_model(model, layers, repeats), kinds, folder, seed, tokenizer)


def _originals(needed: Mapping[str, Tensor] | None, index: int, shape: LayerShape) -> tuple[Tensor, Tensor]:
    """Select the attention neurons and the MLP neurons of a layer that are the truth, bool [n] each."""
    attention, mlp = (GRANULARITIES[name].width(shape) for name in ("attention_neuron", "mlp_neuron"))
    if needed is None:
        return torch.ones(attention, dtype=torch.bool), torch.ones(mlp, dtype=torch.bool)
    return needed["attention_neuron"][index, :attention].cpu(), needed["mlp_neuron"][index, :mlp].cpu()


def save_planted(model: Any, kinds: list[LayerKinds], folder: Path, seed: int, tokenizer: Any = None) -> Planted:
    """Save a widened model and its truth. kinds: of the nodes of every layer."""
    shapes = find_sites(model).shapes
    by_name = {name: [layer[name] for layer in kinds] for name in kinds[0]}
    planted = Planted(folder, _truth(by_name, shapes), by_name)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    Circuit(planted.truth, {}, _describe(planted, shapes, seed)).save(folder / "truth/circuit.safetensors")
    return planted


def _allowed(config: Any, times: int) -> int:
    """Find the least factor on the heads, from `times` up, so that their number divides the hidden size (a transformers rule)."""
    for number in range(times, config.hidden_size // config.num_attention_heads + 1):
        if config.hidden_size % (number * config.num_attention_heads) == 0:
            return number
    raise UserError(
        f"hidden size {config.hidden_size} is no multiple of {times} x {config.num_attention_heads} heads or more; lower times"
    )


def _widen_attention(
    weights: LayerWeights, needed: Tensor, times: int, sampler: Sampler
) -> tuple[LayerWeights, LayerKinds]:
    groups, queries, size, _ = weights.q.shape
    mask = needed.view(groups, queries, size)
    _check_silent(weights.heads_write[~mask], "attention neurons")
    kept = mask.flatten(1).any(1).nonzero().flatten().tolist()
    kinds = ["silent", "opposed"] + ["unread"] * sampler.unread + ["inner"] * (size % 2 == 0)
    nodes = fill(kept, kept or range(groups), times * groups, kinds, sampler)
    source = torch.tensor([node.source for node in nodes])
    v = weights.v[source]
    for index, node in enumerate(nodes):
        if node.kind == "inner":
            v[index, size // 2 :] = v[index, : size // 2]
    norms = weights.heads_write[mask].norm(dim=-1) if kept else torch.ones(1)
    wide = weights._replace(
        q=weights.q[source], k=weights.k[source], v=v, heads_write=writes(nodes, weights.heads_write, norms, sampler)
    )
    neurons = [
        [[_kind_of_neuron(node.kind, bool(mask[node.source, q, n])) for n in range(size)] for q in range(queries)]
        for node in nodes
    ]
    heads = [head for group in neurons for head in group]
    kinds_of_heads = [
        node.kind if node.kind not in NEEDED or node.kind in head else "silent"
        for node, group in zip(nodes, neurons, strict=True)
        for head in group
    ]
    return wide, {"head": kinds_of_heads, "attention_neuron": [kind for head in heads for kind in head]}


def _kind_of_neuron(group: str, needed: bool) -> str:
    if group in NEEDED:
        return group if needed else "silent"
    return "opposed" if group == "inner" else group


def _widen_mlp(weights: LayerWeights, needed: Tensor, times: int, sampler: Sampler) -> tuple[LayerWeights, LayerKinds]:
    _check_silent(weights.neurons_write[~needed], "MLP neurons")
    kept = needed.nonzero().flatten().tolist()
    inputs = weights.inputs
    if not kept:  # nothing to read as
        inputs = torch.randn(inputs.shape, generator=sampler.draw)
    kinds = ["silent", "opposed"] + ["unread"] * sampler.unread
    nodes = fill(kept, kept or range(len(needed)), times * len(needed), kinds, sampler)
    norms = weights.neurons_write[needed].norm(dim=-1) if kept else torch.ones(1)
    wide = weights._replace(
        inputs=inputs[:, [node.source for node in nodes]],
        neurons_write=writes(nodes, weights.neurons_write, norms, sampler),
    )
    return wide, {"mlp_neuron": [node.kind for node in nodes]}


def _check_silent(written: Tensor, what: str) -> None:
    if written.any():
        raise UserError(
            f"{what} that are not needed write into the residual stream; set their output weights to 0 first"
        )


def _truth(kinds: Kinds, shapes: tuple[LayerShape, ...]) -> Masks:
    neurons = {
        name: torch.tensor([[kind in NEEDED for kind in row] for row in kinds[name]])
        for name in LEAVES.values()
        if name in kinds
    }
    return complete_masks(neurons, shapes)


def _describe(planted: Planted, shapes: tuple[LayerShape, ...], seed: int) -> dict[str, str]:
    """Describe the truth in the metadata of its circuit file, so that found circuits can be compared with it."""
    model = ModelConfig(path=str(planted.folder))
    return model_metadata(model, fingerprint(model), shapes) | {
        "task": "the truth, as planted",
        "task_sha256": "",
        "ablation": "interchange",
        "granularities": json.dumps(list(planted.kinds)),
        "seed": str(seed),
        "kinds": json.dumps(planted.kinds),
    }
