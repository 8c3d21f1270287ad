"""Runs of a model with fewer decoder layers: what a layer adds is found without the whole model."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from bigcircuit.config.load import override
from bigcircuit.model.granularity import GRANULARITIES, node_counts
from bigcircuit.model.sites import find_sites
from bigcircuit.train.resolve import ResolvedRun

_BLOCK = 1 << 20
"""Random numbers that weights are filled with, over and over: drawing gigabytes takes longer than what is measured."""


def shortened(run: ResolvedRun, layers: int) -> ResolvedRun:
    """Return the run with the first decoder layers of its model only, which share its weights; sizes asked for shrink to fit."""
    whole = run.model.skeleton.model
    model = deepcopy(whole, {id(tensor): tensor for tensor in (*whole.parameters(), *whole.buffers())})
    path = run.model.skeleton.path
    parent, _, name = path.rpartition(".")
    kept = list(attrgetter(path)(model))[:layers]
    setattr(attrgetter(parent)(model) if parent else model, name, nn.ModuleList(kept))
    frozen = replace(find_sites(model, guess=True), device=run.model.skeleton.device)
    nodes = node_counts(frozen.shapes, list(GRANULARITIES))
    members = []
    for member in run.members:
        sizes = {f"target.{name}": max(1, min(size, nodes[name] // 2)) for name, size in member.target.sizes().items()}
        free = {"target.per_layer": "free", "target.multiple_of": 1, "target.parameters": None}
        members.append(override(member, sizes | free, "fewer layers"))
    return replace(run, members=tuple(members), model=replace(run.model, skeleton=frozen, deepspeed=None))


def from_few_layers(run: ResolvedRun, count: Callable[[ResolvedRun], int], few: int) -> int:
    """Count something that every layer adds as much to, from `few` layers and from one more, where layers are alike.

    count: of a run; exact as long as it grows by the same amount from `few` layers on.
    """
    layers = run.model.skeleton.layers
    kinds = {tuple((name, p.shape) for name, p in layer.module.named_parameters()) for layer in layers}
    attentions = getattr(run.model.hf_config, "layer_types", None) or ()
    if len(layers) <= few + 1 or len(kinds) > 1 or len(set(attentions)) > 1:
        return count(run)
    least, more = (count(shortened(run, number)) for number in (few, few + 1))
    return least + (len(layers) - few) * (more - least)


def materialised(run: ResolvedRun, device: torch.device) -> ResolvedRun:
    """Return a run on the meta device with random weights on another device: as fast as the real ones, and not read."""
    frozen = run.model.skeleton
    model = deepcopy(frozen.model).to_empty(device=device)
    model.tie_weights()
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(device)
    for module in model.modules():
        for key, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_meta:  # a copy of a buffer, which `to_empty` does not know
                setattr(module, key, torch.empty_like(value, device=device).fill_(1))
    for tensor in {*model.parameters(), *model.buffers()}:
        _fill(tensor.detach(), block)
    return replace(run, model=replace(run.model, skeleton=find_sites(model.requires_grad_(False), guess=True)))


def _fill(tensor: Any, block: Tensor) -> None:
    if not tensor.is_floating_point():
        tensor.fill_(1 if tensor.dtype == torch.bool else 0)
    elif tensor.ndim < 2:
        tensor.fill_(1)  # norms: activations stay of the order of 1
    else:
        flat = tensor.view(-1)
        for start in range(0, len(flat), len(block)):
            part = flat[start : start + len(block)]
            part.copy_(block[: len(part)])


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of all weights of a module, on the meta device or not."""
    return sum(p.numel() * p.element_size() for p in module.parameters())
