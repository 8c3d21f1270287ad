"""Penalties of a member's size: fixed weights, or dual variables that find the weight for an asked size."""

import torch
from torch import Tensor

from bigcircuit.config.schema import Config
from bigcircuit.gates.parametrisation import has_exact_sizes
from bigcircuit.gates.schedules import allowed_size, pressure
from bigcircuit.model.granularity import GRANULARITIES


class Duals:
    """Non-negative multipliers, one for every target size of a member, raised while the member is too large.

    The term is the augmented Lagrangian of (open - allowed) / nodes <= 0 (Nocedal and Wright, Numerical Optimization,
    2nd ed., section 17.3): the multiplier grows by `train.dual_lr` times the violation, relative to the allowed size.
    """

    def __init__(self, config: Config, nodes: dict[str, int]) -> None:
        self.config = config
        self.nodes = nodes
        # Top-k gates have the asked size by construction.
        self.sizes: dict[str, float] = (
            {} if has_exact_sizes(config.gates.parametrisation) else {**config.target.sizes()}
        )
        if "total" in self.sizes and config.target.parameters is not None:
            del self.sizes["total"]
            self.sizes["parameters"], self.nodes = config.target.parameters, {**nodes, "parameters": 1}
        self.value = dict.fromkeys(self.sizes, 0.0)

    def terms(self, expected: dict[str, Tensor], done: float) -> dict[str, Tensor]:
        """Compute loss terms by target, scalars; expected: this member's expected open nodes."""
        terms = {}
        for name in self.sizes:
            excess = self._excess(name, expected[name], done)
            terms[name] = self.value[name] * excess + 0.5 * self.config.train.dual_stiffness * excess.clamp(min=0) ** 2
        return terms

    def update(self, expected: dict[str, Tensor], done: float) -> None:
        """Make a step of dual ascent: too large raises the multiplier, too small lowers it, never below 0."""
        for name in self.sizes:
            change = self.config.train.dual_lr * float(self._excess(name, expected[name].detach(), done))
            self.value[name] = max(0.0, self.value[name] + change)

    def _excess(self, name: str, expected: Tensor, done: float) -> Tensor:
        allowed = allowed_size(self.config.train, self.nodes[name], self.sizes[name], done)
        return expected / allowed - 1


def fixed_terms(config: Config, expected: dict[str, Tensor], nodes: dict[str, int], done: float) -> dict[str, Tensor]:
    """Compute loss terms by granularity, scalars of one member: penalty x expected open fraction, where there is no target."""
    targets = config.target.sizes()
    if "total" in targets:
        return {}
    return {
        name: weight * pressure(config.train, name, done) * expected[name] / nodes[name]
        for name, weight in config.penalty
        if weight and name in GRANULARITIES and name not in targets
    }


def total(terms: dict[str, Tensor]) -> Tensor:
    """Sum scalar terms; 0 without any."""
    return torch.stack(list(terms.values())).sum() if terms else torch.zeros(())
