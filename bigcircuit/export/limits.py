"""Close the weakest nodes of a circuit until every layer fits the sizes asked for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks, leaves
from bigcircuit.circuit.validate import shapes_of
from bigcircuit.errors import UserError
from bigcircuit.gates.discretise import Masks
from bigcircuit.model.granularity import ATTENTION, GRANULARITIES, MLP, SITE_WIDTH, LayerShape, fold


def within_limits(circuit: Circuit, widths: Mapping[str, list[int]], limits: Mapping[str, int], source: str) -> Masks:
    """Return the masks of a circuit that fits the limits, its strongest nodes kept.

    The strength of a neuron is the weakest log_alpha above it, that of a head or group the strength of its strongest kept neuron.
    limits: `mlp_neurons`, `kv_heads`, `heads_per_group`. Raises UserError for a circuit without log_alpha, which `source` names.
    """
    if not circuit.log_alpha:
        raise UserError(
            f"{source}: holds no log_alpha, so there are no scores by which --{' and --'.join(limits)} could choose; leave "
            "them out, or give a circuit that was trained"
        )
    shapes, kept = shapes_of(widths), {name: mask.clone() for name, mask in leaves(circuit.masks).items()}
    for index, shape in enumerate(shapes):
        heads = kept["attention_neuron"][index, : SITE_WIDTH[ATTENTION](shape)].view(shape.kv_heads, -1, shape.head_dim)
        strength = _strengths(circuit.log_alpha, index, shape, ATTENTION).view_as(heads).masked_fill(~heads, -torch.inf)
        by_head = strength.amax(2)
        if "heads_per_group" in limits:
            heads &= _strongest(by_head, limits["heads_per_group"]).unsqueeze(2)
        if "kv_heads" in limits:
            heads &= _strongest(by_head.amax(1), limits["kv_heads"])[:, None, None]
        neurons = kept["mlp_neuron"][index, : shape.intermediate]
        if "mlp_neurons" in limits:
            own = _strengths(circuit.log_alpha, index, shape, MLP).masked_fill(~neurons, -torch.inf)
            neurons &= _strongest(own, limits["mlp_neurons"])
    return complete_masks(kept, shapes)


def _strengths(log_alpha: Mapping[str, Tensor], index: int, shape: LayerShape, site: str) -> Tensor:
    """Weakest log_alpha above each neuron of a site, [site width]; 0 where no gate acts."""
    gates = {name: values[index, : GRANULARITIES[name].width(shape)] for name, values in log_alpha.items()}
    found = fold(gates, site, shape, torch.minimum)
    return torch.zeros(SITE_WIDTH[site](shape)) if found is None else found


def _strongest(values: Tensor, count: int) -> Tensor:
    """Mark the largest values along the last dimension; equal ones by their place."""
    order = values.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, order, True)
