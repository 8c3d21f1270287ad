"""How log_alpha become gate values: samples of the hard-concrete distribution, or soft top-k.

Shapes: P members, B examples, L layers, n nodes of a granularity in the widest layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from bigcircuit.gates import top_k
from bigcircuit.gates.granularity import fold_sites
from bigcircuit.gates.hard_concrete import binary_sample, probability_open, sample

if TYPE_CHECKING:
    from bigcircuit.gates.population import Population

Masks = Callable[[int], dict[str, Tensor]]
"""Layer index -> effective masks of every member by site, [P, B or 1, site width]."""


class Parametrisation(NamedTuple):
    """The three things that training wants to know."""

    draw: Callable[[Population, Sequence[int]], Masks]
    """Gate values of a pass over examples with these ids."""
    open: Callable[[Population], dict[str, Tensor]]
    """How far, or with what probability, each gate is open, by granularity float64 [P, L, n]."""
    decided: Callable[[Population, int], dict[str, Tensor]]
    """log_alpha of a member by granularity, [L, n], as `discretise` takes it: open above 0."""


def _samples(population: Population, examples: Sequence[int], value: Callable[[Tensor, Tensor], Tensor]) -> Masks:
    """Gates with fresh noise for every member and example."""
    stacked = population.stack()

    def masks(index: int) -> dict[str, Tensor]:
        gates = population.layer(stacked, index)
        widths = [values.shape[-1] for values in gates.values()]
        noise = population.uniform(index, examples, sum(widths)).split(widths, dim=-1)
        drawn = {name: value(gates[name].unsqueeze(1), part) for name, part in zip(gates, noise, strict=True)}
        return fold_sites(drawn, population.shapes[index])

    return masks


def _probabilities(population: Population) -> dict[str, Tensor]:
    return {name: probability_open(values.double()) for name, values in population.stack().items()}


def _as_they_are(population: Population, member: int) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in population.members[member].log_alpha.items()}


PARAMETRISATIONS = {
    "hard_concrete": Parametrisation(partial(_samples, value=sample), _probabilities, _as_they_are),
    "straight_through": Parametrisation(partial(_samples, value=binary_sample), _probabilities, _as_they_are),
    "sigmoid_top_k": Parametrisation(partial(top_k.draw, rounded=False), top_k.shares, top_k.centred),
    "straight_through_top_k": Parametrisation(partial(top_k.draw, rounded=True), top_k.shares, top_k.centred),
}
