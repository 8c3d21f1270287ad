"""Controls for a circuit: its complement, the empty circuit, random circuits of the same shape, partly open complements.

All are leaf masks, because only leaves (single neurons of the sites) decide what is computed: granularity -> bool [L, n], rows
padded with False. `complete_masks` derives the masks of coarser nodes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bigcircuit.circuit.masks import leaves
from bigcircuit.gates.discretise import Masks
from bigcircuit.model.granularity import GRANULARITIES, LayerShape
from bigcircuit.seeding import mix


def empty(masks: Mapping[str, Tensor]) -> Masks:
    """Make the empty circuit: no neuron is kept."""
    return {name: torch.zeros_like(mask) for name, mask in leaves(masks).items()}


def full(masks: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> Masks:
    """Make the full circuit: every neuron that exists is kept."""
    return {name: _existing(name, mask, shapes) for name, mask in leaves(masks).items()}


def complement(masks: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> Masks:
    """Make the complement: every neuron that the circuit does not keep."""
    return {name: _existing(name, mask, shapes) & ~mask for name, mask in leaves(masks).items()}


def _existing(name: str, mask: Tensor, shapes: Sequence[LayerShape]) -> Tensor:
    widths = torch.tensor([GRANULARITIES[name].width(shape) for shape in shapes])
    return torch.arange(mask.shape[1]) < widths.unsqueeze(1)


def random_circuits(
    masks: Mapping[str, Tensor], shapes: Sequence[LayerShape], draws: int, seed: int = 0
) -> list[Masks]:
    """Draw circuits of the same shape uniformly: in every layer as many key/value groups, heads, attention neurons within
    each kept head and MLP neurons.

    A draw shuffles the groups of a layer, the heads of each group, the neurons of each head, and those of the MLP, so the
    counts of every granularity stay what they are.
    """
    leaf_masks = leaves(masks)
    drawn = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(mix(seed, draw))
        shuffled = {name: mask.clone() for name, mask in leaf_masks.items()}
        for index, shape in enumerate(shapes):
            for name, mask in shuffled.items():
                width = GRANULARITIES[name].width(shape)
                if not width:
                    continue
                axes = _trees(shape).get(name, (width,))
                mask[index, :width] = _shuffle(mask[index, :width].view(axes), generator).flatten()
        drawn.append(shuffled)
    return drawn


def _trees(shape: LayerShape) -> dict[str, tuple[int, ...]]:
    """Neurons of a layer as a tree: granularity of the neurons -> number of nodes at each level, coarse to fine."""
    return {
        "attention_neuron": (shape.kv_heads, shape.heads // max(shape.kv_heads, 1), shape.head_dim),
        "mixer_neuron": (shape.mixer_heads, shape.mixer_dim),
        "expert_neuron": (shape.experts, shape.expert_width),
    }


def _shuffle(values: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffle along the first dimension, then every entry within itself."""
    values = values[torch.randperm(len(values), generator=generator)]
    return values if values.ndim == 1 else torch.stack([_shuffle(part, generator) for part in values])


def partly_open(
    masks: Mapping[str, Tensor], shapes: Sequence[LayerShape], fraction: float, draws: int, seed: int = 0
) -> list[Masks]:
    """Draw circuits with a random share of the complement's neurons open as well, rounded to whole neurons of a site.

    fraction: that share, 0 to 1.
    """
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
