"""A circuit applied in other libraries: hooks for TransformerLens, interventions for nnsight.

What closed nodes output is that of the circuit's ablation: nothing, its constants, or under interchange ablation their activation
on the corrupted prompts, which the caller hands over.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.validate import shapes_of
from bigcircuit.convert.hook_names import ALIASES, HEADS, NEURONS
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import ATTENTION, EVERYWHERE, GRANULARITIES, LEAVES, MLP, SITE_WIDTH, LayerShape
from bigcircuit.model.sites import find_sites

Hook = Callable[..., Tensor]
_PLACES = {ATTENTION: HEADS, MLP: NEURONS}


def transformer_lens_hooks(
    circuit: Circuit, corrupted: Mapping[str, Tensor] | None = None, *, bridge: bool = False
) -> list[tuple[str, Hook]]:
    """Make hooks for `model.run_with_hooks(tokens, fwd_hooks=...)` of TransformerLens.

    corrupted: cache of the corrupted prompts by the same names, [batch, tokens, ...], for interchange ablation; bridge: whether
    names are those of TransformerLens 4 in place of the older ones. Raises UserError for an ablation that hooks cannot hold, and
    where `corrupted` is missing.
    """
    names = {place: other for other, place in ALIASES.items()} if bridge else {}
    hooks = []
    for layer, shape in enumerate(_shapes(circuit, corrupted is not None)):
        for site, place in _PLACES.items():
            name = f"blocks.{layer}.{names.get(place, place)}"
            other = None if corrupted is None else corrupted[name]
            hooks.append((name, _hook(*_values(circuit, site, layer, shape), other)))
    return hooks


def _hook(mask: Tensor, constant: Tensor, corrupted: Tensor | None) -> Hook:
    def run(value: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001 - the library's signature
        size = value.shape[2:]
        return _interpolated(value, mask.view(size), constant.view(size), corrupted)

    return run


def apply_in_trace(circuit: Circuit, model: Any, corrupted: Mapping[str, Sequence[Tensor]] | None = None) -> None:
    """Close the nodes of a circuit inside `with model.trace(...)` of nnsight; nothing is changed after the trace.

    model: NNsight or LanguageModel over a Hugging Face model; corrupted: for interchange ablation, `attention` and `mlp` -> inputs
    of the projections on the corrupted prompts, [batch, tokens, width], a layer each. Raises UserError like
    `transformer_lens_hooks`, and for an architecture that is not in the table.
    """
    row = find_sites(model._module).paths  # what an Envoy of nnsight wraps
    layers = attrgetter(row.layers)(model)
    for index, shape in enumerate(_shapes(circuit, corrupted is not None)):
        for site, path in ((ATTENTION, row.attention), (MLP, row.mlp)):
            projection = attrgetter(path)(layers[index])
            mask, constant = _values(circuit, site, index, shape)
            other = None if corrupted is None else corrupted[site][index]
            projection.input = _interpolated(projection.input, mask, constant, other)


def _shapes(circuit: Circuit, has_corrupted: bool) -> list[LayerShape]:
    """Widths of all layers. Raises UserError for circuits that a hook at the inputs of projections cannot apply."""
    import json

    kind = KINDS[circuit.ablation_name]
    if kind.needs_corrupted and not has_corrupted:
        raise UserError(
            "the circuit was found under interchange ablation; hand over the activations of the corrupted prompts"
        )
    if kind.per_position or kind.sample is not None or (kind.tensors and not circuit.constants):
        raise UserError(
            f"hooks hold no {circuit.ablation_name} ablation of this circuit; use one with constants in its file"
        )
    others = [name for name in circuit.masks if name not in EVERYWHERE]
    if others:
        raise UserError(
            f"the circuit has masks of {GRANULARITIES[others[0]].nodes}, which hooks at the inputs of attention's and the MLP's "
            "projections do not reach"
        )
    return shapes_of(json.loads(circuit.metadata["widths"]))


def _values(circuit: Circuit, site: str, layer: int, shape: LayerShape) -> tuple[Tensor, Tensor]:
    """Mask of a site, bool [w], and what its closed neurons output without a corrupted prompt, float32 [w]."""
    width = SITE_WIDTH[site](shape)
    constants = circuit.constants.get(site)
    constant = torch.zeros(width) if constants is None else constants[layer, :width]
    return circuit.masks[LEAVES[site]][layer, :width], constant


def _interpolated(value: Tensor, mask: Tensor, constant: Tensor, corrupted: Tensor | None) -> Tensor:
    other = constant.to(value.device, value.dtype) if corrupted is None else corrupted
    return torch.where(mask.to(value.device), value, other)
