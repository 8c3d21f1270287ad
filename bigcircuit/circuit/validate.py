"""Validation of circuit files, whichever tool wrote them. Needs no weights.

Shapes: L layers, n nodes of a granularity in the widest layer, T positions.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from bigcircuit.ablation.kinds import DEFAULT, KINDS, TENSORS
from bigcircuit.config.choices import OneOf
from bigcircuit.errors import UserError
from bigcircuit.io.files import tensor_sha256
from bigcircuit.model.granularity import (
    EVERYWHERE,
    GRANULARITIES,
    LEAVES,
    LayerShape,
    fits_values,
    has_masks,
    sites_of,
)


class ScoreShape(BaseModel):
    """A score: its mean with the ends of the interval, and tails where it has them."""

    model_config = ConfigDict(strict=True)

    mean: float | None
    low: float | None
    high: float | None
    p5: float | None = None
    p95: float | None = None
    min: float | None = None
    max: float | None = None


_JSON: dict[str, Any] = {
    "sha256": dict[str, str],
    "widths": dict[str, list[Annotated[int, Field(ge=0)]]],
    "scores": dict[Annotated[str, OneOf(KINDS)], dict[str, ScoreShape]] | dict[str, ScoreShape],
    "targets": dict[Annotated[str, OneOf(["total", *GRANULARITIES])], Annotated[int, Field(ge=0)]],
    "granularities": list[Annotated[str, OneOf(GRANULARITIES)]],
    "versions": dict[str, str],
}
"""Metadata that is JSON -> its type."""
_MOST_NODES = 2**24
"""Nodes of a granularity, over all layers as wide as the widest, that metadata may say without a tensor of that size; the largest
models of today have less than half as many."""
_FLOATS = (torch.float16, torch.float32, torch.float64)
"""Types of numbers that are read: those that numpy has too."""
_PARTS: dict[str, Collection[str]] = {
    "mask": GRANULARITIES,
    "log_alpha": GRANULARITIES,
    **dict.fromkeys(TENSORS.values(), LEAVES),
}
"""First part of a tensor's name -> the second ones. Tensors with other prefixes are ignored."""


def check_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> dict[str, list[int]]:
    """Check the tensors and metadata of a circuit file and return its widths: granularity -> number of nodes of each layer.

    Raises UserError, naming `source`, for the first thing that the format does not allow or that is damaged.
    """
    parsed = {
        key: _parsed(metadata[key], TypeAdapter(kind), key == "granularities", f"{source}: its metadata {key}")
        for key, kind in _JSON.items()
        if key in metadata
    }
    hashes = parsed.get("sha256", {})
    for name in sorted(hashes.keys() | tensors.keys()):
        if name in tensors and name not in hashes:
            raise UserError(
                f"{source}: its metadata sha256 has no hash of tensor {name}; write the file again with one"
            )
        if name not in tensors or tensor_sha256(tensors[name]) != hashes[name]:
            raise UserError(f"{source}: tensor {name} is damaged (its sha256 differs); restore the file from a copy")
    known = metadata.get("ablation", DEFAULT)
    if known not in KINDS:
        raise UserError(f"{source}: its ablation {known} is not known; use any of {', '.join(KINDS)}")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, source)
        if name.partition(".")[0] in TENSORS.values():
            _check_values(name, tensor, known, source)
    widths = _widths(tensors, parsed.get("widths", {}), source)
    for name, tensor in tensors.items():
        _check_size(name, tensor, widths, source)
    _check_ablation(known, tensors, shapes_of(widths), source)
    return widths


def _check_ablation(name: str, tensors: Mapping[str, Tensor], shapes: Sequence[LayerShape], source: str) -> None:
    """Check that a file holds all tensors of its ablation or none. Raises UserError for some: that would be another ablation.

    Without tensors the file is valid: the output of closed nodes is then measured again.
    """
    masks = [tensor.removeprefix("mask.") for tensor in tensors]
    wanted = [f"{TENSORS[part]}.{site}" for part in KINDS[name].tensors for site in sites_of(shapes, masks)]
    missing = [tensor for tensor in wanted if tensor not in tensors]
    if missing and len(missing) < len(wanted):
        raise UserError(
            f"{source}: tensor {missing[0]} is missing, without which {name} ablation is another one; restore the file from a "
            "copy, or take its other tensors of the ablation out to have them measured again"
        )


def _parsed(text: str, kind: TypeAdapter[Any], is_list: bool, what: str) -> Any:
    """Parse JSON of a type. Raises UserError, beginning with `what`, for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list if is_list else dict):
        raise UserError(f"{what} is not a JSON {'list' if is_list else 'object'}; write the file again")
    try:
        return kind.validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part)[:60] for part in problem["loc"])
        raise UserError(
            f"{what} is not as it should be ({where}: {problem['msg'].lower()}); write the file again"
        ) from error


def _check_tensor(name: str, tensor: Tensor, source: str) -> None:
    """Check name, type and dimensions of a tensor. Raises UserError."""
    part, _, of = name.partition(".")
    if part not in _PARTS:
        return
    known = _PARTS[part]
    if 0 in tensor.shape and tensor.ndim == 2:
        raise UserError(f"{source}: tensor {name} is empty; write a row a layer, [layers, nodes], or leave it out")
    if of not in known:
        raise UserError(f"{source}: tensor {name} is of nothing known; use {part}. and any of {', '.join(known)}")
    if part == "mask" and tensor.dtype != torch.bool:
        raise UserError(f"{source}: tensor {name} is {_type(tensor)}; masks are bool, so write those of `mask > 0.5`")
    if part == "mask" and (tensor.view(torch.uint8) > 1).any():
        raise UserError(f"{source}: tensor {name} has bytes other than 0 and 1, which is no bool; write the file again")
    if part != "mask" and tensor.dtype not in _FLOATS:
        raise UserError(f"{source}: tensor {name} is {_type(tensor)}; write it as float32")
    if tensor.ndim != 2 and not (part == TENSORS["constants"] and tensor.ndim == 3):
        raise UserError(f"{source}: tensor {name} has {tensor.ndim} dimensions; write a row a layer, [layers, nodes]")


def _check_values(name: str, tensor: Tensor, ablation: str, source: str) -> None:
    """Check positions and values of a tensor of the ablation. Raises UserError.

    Constants by position may have two dimensions: a run writes [L, n] where all its prompts have one token.
    """
    if tensor.ndim == 3 and not KINDS[ablation].per_position:
        raise UserError(
            f"{source}: tensor {name} is by position and {ablation} ablation is not; write it as [layers, nodes], or name the "
            "ablation that it is of"
        )
    if tensor.ndim == 3 and tensor.shape[1] == 0:
        raise UserError(
            f"{source}: tensor {name} has no positions; write [layers, positions, nodes], the last position for all beyond"
        )
    if not tensor.isfinite().all():
        raise UserError(
            f"{source}: tensor {name} has values that are NaN or infinite; take the tensors of the ablation out to have them "
            "measured again"
        )
    if name.startswith(f"{TENSORS['deviations']}.") and (tensor < 0).any():
        raise UserError(
            f"{source}: tensor {name} has negative standard deviations; take the tensors of the ablation out to have them "
            "measured again"
        )


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_size(name: str, tensor: Tensor, widths: Mapping[str, Sequence[int]], source: str) -> None:
    """Check the numbers of layers and nodes of a tensor. Raises UserError."""
    part, _, site = name.partition(".")
    is_value = part in TENSORS.values()
    of = LEAVES.get(site, site) if is_value else site
    if part not in _PARTS or of not in widths:
        return
    wide = tensor.shape[-1]
    fits = fits_values(wide, shapes_of(widths), site) if is_value else wide == max(1, *widths[of])
    if len(tensor) != len(widths[of]) or not fits:
        raise UserError(
            f"{source}: tensor {name} has {tensor.shape[-1]} nodes in {len(tensor)} layers and its metadata widths say "
            f"{max(widths[of])} in {len(widths[of])}; write one row a layer, padded to the widest"
        )


def _widths(tensors: Mapping[str, Tensor], stated: dict[str, Any], source: str) -> dict[str, list[int]]:
    """Read the nodes of every layer by granularity from the metadata, or else from the shapes of the masks.

    stated: the metadata `widths`. `kv_group` and `mlp_output` may be missing. Raises UserError where the others are missing or
    do not fit.
    """
    masks = {name.removeprefix("mask."): mask for name, mask in tensors.items() if name.startswith("mask.")}
    if not masks:
        raise UserError(f"{source}: has no masks; write mask.<granularity> for one granularity or more")
    wide = {name: [mask.shape[1]] * len(mask) for name, mask in masks.items()} | stated
    try:
        shapes = shapes_of(wide)
        found = {name: [granularity.width(s) for s in shapes] for name, granularity in GRANULARITIES.items()}
        if not shapes or any(stated.get(name, rows) != rows for name, rows in found.items()):
            raise ValueError("no layers, or widths that do not divide")
        if any(shape.heads and shape.heads % shape.kv_heads for shape in shapes):
            raise ValueError("groups of different sizes")
        if any(
            not (shape.heads or shape.intermediate or shape.mixer_heads or shape.experts)
            or shape.hidden
            and not shape.intermediate
            for shape in shapes
        ):
            raise ValueError("a layer without nodes")
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{source}: its metadata widths do not say how many heads, attention neurons and MLP neurons each layer has; write "
            '{"head": [...], "attention_neuron": [...], "mlp_neuron": [...]}, a number a layer'
        ) from error
    for name, rows in found.items():
        made = name not in masks and has_masks(name, masks)
        if made and len(rows) * max(rows) > _MOST_NODES:
            raise UserError(
                f"{source}: its metadata widths say {max(rows):,} {GRANULARITIES[name].nodes} a layer, more than any model has; "
                "write the file again with those of its model"
            )
    always = set(EVERYWHERE) - {"kv_group"}
    return {
        name: rows
        for name, rows in found.items()
        if name in wide or name in always or (any(rows) and name not in ("kv_group", "mlp_output", "expert_neuron"))
    }


def shapes_of(widths: Mapping[str, Sequence[int]]) -> list[LayerShape]:
    """Make layer shapes of widths by granularity. Without `kv_group` every head is a group; others that are missing are 0."""
    heads = widths["head"]
    none = [0] * len(heads)
    needed = heads, widths.get("kv_group", heads), widths["attention_neuron"], widths["mlp_neuron"]
    others = (widths.get(n, none) for n in ("mlp_output", "mixer_head", "mixer_neuron", "expert", "expert_neuron"))
    return [
        LayerShape(
            heads=h,
            kv_heads=groups,
            head_dim=a // max(h, 1),
            intermediate=m,
            hidden=hidden,
            mixer_heads=mixer_heads,
            mixer_dim=mixer // max(mixer_heads, 1),
            experts=experts,
            expert_width=neurons // max(experts, 1),
        )
        for h, groups, a, m, hidden, mixer_heads, mixer, experts, neurons in zip(*needed, *others, strict=True)
    ]
