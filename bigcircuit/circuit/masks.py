"""Masks of a circuit: leaf masks, and masks of every granularity derived from the masks of some.

Leaves are single neurons of the sites. Leaf masks alone decide what a circuit computes.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from bigcircuit.gates.discretise import Masks, discretise
from bigcircuit.model.granularity import LEAVES, LayerShape, has_masks


def leaves(masks: Mapping[str, Tensor]) -> Masks:
    """Select the leaf masks of a circuit: granularity -> bool [L, n]."""
    return {name: masks[name] for site, name in LEAVES.items() if name in masks and has_masks(site, masks)}


def complete_masks(masks: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> Masks:
    """Derive masks of every granularity from the masks of one or more, by the one definition in `discretise`.

    A neuron is open if its own mask and all masks above it are open, a coarser node if something below it is open. Granularities
    without a mask close nothing: masks of heads alone keep all neurons of these heads, and all MLPs.
    """
    return discretise({name: mask.float() * 2 - 1 for name, mask in masks.items()}, shapes, {})
