"""Gates drawn from the hard-concrete distribution, with fresh noise for every member and example.

Shapes: P members, B examples, L layers, n nodes of a granularity in the widest layer.
"""

from collections.abc import Sequence

from torch import Tensor

from bigcircuit.gates.hard_concrete import binary_sample, probability_open, sample
from bigcircuit.gates.members import Members
from bigcircuit.gates.parametrisation import LayerMasks
from bigcircuit.model.granularity import fold_sites


def draw(population: Members, examples: Sequence[int], rounded: bool) -> LayerMasks:
    """Draw layer index -> effective masks by site, [P, B, site width]. rounded: to 0 or 1, with the soft gradient."""
    value = binary_sample if rounded else sample
    stacked = population.stack()

    def masks(index: int) -> dict[str, Tensor]:
        gates = population.layer(stacked, index)
        widths = [values.shape[-1] for values in gates.values()]
        noise = population.uniform(index, examples, sum(widths)).split(widths, dim=-1)
        drawn = {name: value(gates[name].unsqueeze(1), part) for name, part in zip(gates, noise, strict=True)}
        return fold_sites(drawn, population.shapes[index])

    return masks


def open_shares(population: Members) -> dict[str, Tensor]:
    """Compute the probability that each gate is open, by granularity float64 [P, L, n]."""
    return {name: probability_open(values.double()) for name, values in population.stack().items()}


def decided(population: Members, member: int) -> dict[str, Tensor]:
    """Copy log_alpha of a member by granularity, [L, n]: gates above 0 are open."""
    return {name: values.detach().clone() for name, values in population.members[member].log_alpha.items()}
