"""Circuits to compare a circuit with: its complement, nothing, random ones of the same shape, and more and more of the rest.

Only leaves (single neurons of the sites) decide what is computed, so these are leaf masks: granularity -> bool [L, n], rows
padded with False. `consistent` makes whole circuits of them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bigcircuit.gates.discretise import Masks, discretise
from bigcircuit.model.granularity import GRANULARITIES, LEAVES, LayerShape
from bigcircuit.seeding import mix

Shapes = Sequence[LayerShape]


def leaves(masks: Mapping[str, Tensor]) -> Masks:
    """The leaf masks of a circuit."""
    return {name: masks[name] for name in LEAVES.values() if name in masks}


def consistent(masks: Mapping[str, Tensor], shapes: Shapes) -> Masks:
    """Masks of every granularity from leaf masks, by the one definition: a node is open if something below it is."""
    return discretise({name: mask.float() * 2 - 1 for name, mask in leaves(masks).items()}, shapes, {})


def empty(masks: Mapping[str, Tensor]) -> Masks:
    """Nothing kept."""
    return {name: torch.zeros_like(mask) for name, mask in leaves(masks).items()}


def full(masks: Mapping[str, Tensor], shapes: Shapes) -> Masks:
    """Every neuron that exists."""
    return {name: _existing(name, mask, shapes) for name, mask in leaves(masks).items()}


def complement(masks: Mapping[str, Tensor], shapes: Shapes) -> Masks:
    """Every neuron that the circuit does not keep."""
    return {name: _existing(name, mask, shapes) & ~mask for name, mask in leaves(masks).items()}


def _existing(name: str, mask: Tensor, shapes: Shapes) -> Tensor:
    widths = torch.tensor([GRANULARITIES[name].width(shape) for shape in shapes])
    return torch.arange(mask.shape[1]) < widths.unsqueeze(1)


def random_circuits(masks: Mapping[str, Tensor], shapes: Shapes, draws: int, seed: int = 0) -> list[Masks]:
    """Circuits of the same shape, drawn uniformly: in every layer as many key/value groups, heads, attention neurons within
    each kept head and MLP neurons.

    A draw shuffles the groups of a layer, the heads of each group, the neurons of each head, and those of the MLP, so the
    counts of every granularity stay what they are.
    """
    own = leaves(masks)
    drawn = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(mix(seed, draw))
        shuffled = {name: mask.clone() for name, mask in own.items()}
        for index, shape in enumerate(shapes):
            for name, mask in shuffled.items():
                width = GRANULARITIES[name].width(shape)
                tree = (shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
                levels = tree if name == "attention_neuron" else (width,)
                mask[index, :width] = _shuffle(mask[index, :width].view(levels), generator).flatten()
        drawn.append(shuffled)
    return drawn


def _shuffle(values: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffle along the first dimension, then every entry within itself."""
    values = values[torch.randperm(len(values), generator=generator)]
    return values if values.ndim == 1 else torch.stack([_shuffle(part, generator) for part in values])


def partly_open(masks: Mapping[str, Tensor], shapes: Shapes, fraction: float, draws: int, seed: int = 0) -> list[Masks]:
    """The circuit with a random share of its complement's neurons open, rounded to whole neurons of a site."""
    rest = complement(masks, shapes)
    drawn = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(mix(seed, draw, round(fraction * 1000)))
        opened = {}
        for name, mask in leaves(masks).items():
            places = rest[name].flatten().nonzero().flatten()
            chosen = places[torch.randperm(len(places), generator=generator)[: round(fraction * len(places))]]
            opened[name] = mask.flatten().index_fill(0, chosen, True).view_as(mask)
        drawn.append(opened)
    return drawn
