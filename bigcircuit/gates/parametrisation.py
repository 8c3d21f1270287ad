"""Parametrisations: the one table of how log_alpha become gate values in training.

An entry names a module with three functions, `draw`, `open_shares` and `decided` (see Implementation), which is loaded when a
population is made. So this table is plain data that the config, its help and the report read without loading torch.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor

LayerMasks = Callable[[int], "dict[str, Tensor]"]
"""Layer index -> effective masks of every member by site, [P, B or 1, site width]."""


class Implementation(Protocol):
    """Functions of a parametrisation's module. P members, B examples, L layers, n nodes in the widest layer.

    population: the `Members` of a pass.
    """

    def draw(self, population: Any, examples: Sequence[int], rounded: bool) -> LayerMasks:
        """Draw gate values of a pass over examples with these ids. rounded: to 0 or 1, with the soft gradient."""
        ...

    def open_shares(self, population: Any) -> "dict[str, Tensor]":
        """Compute how far, or with what probability, each gate is open, by granularity float64 [P, L, n]."""
        ...

    def decided(self, population: Any, member: int) -> "dict[str, Tensor]":
        """Shift log_alpha of a member so that gates above 0 are open, as `discretise` takes it; by granularity, [L, n]."""
        ...


class Parametrisation(NamedTuple):
    """Everything in which one parametrisation differs from another."""

    module: str
    rounded: bool
    """Whether values are rounded to 0 or 1 in the forward pass (straight-through)."""
    exact_sizes: bool
    """Whether a size is a setting (only granularities with a target get gates, penalties are refused) or an outcome."""
    description: str
    training_kl: str
    """Legend of the KL that training logs."""
    training_size: str
    """Legend of the size that training logs."""

    @property
    def implementation(self) -> Implementation:
        """The imported module."""
        return cast(Implementation, import_module(self.module))


_SAMPLES, _TOP_K = "bigcircuit.gates.samples", "bigcircuit.gates.top_k"
PARAMETRISATIONS: dict[str, Parametrisation] = {
    "hard_concrete": Parametrisation(
        module=_SAMPLES,
        rounded=False,
        exact_sizes=False,
        description="noisy samples whose expected size is penalised",
        training_kl="in training, with noise",
        training_size="expected in training",
    ),
    "straight_through": Parametrisation(
        module=_SAMPLES,
        rounded=True,
        exact_sizes=False,
        description="hard_concrete, rounded to 0 or 1 with the soft gradient",
        training_kl="in training, with noise, rounded",
        training_size="expected in training",
    ),
    "sigmoid_top_k": Parametrisation(
        module=_TOP_K,
        rounded=False,
        exact_sizes=True,
        description="soft values that add up to the asked size; only granularities with a target get gates",
        training_kl="in training, soft gates",
        training_size="sum of the soft gates",
    ),
    "straight_through_top_k": Parametrisation(
        module=_TOP_K,
        rounded=True,
        exact_sizes=True,
        description="sigmoid_top_k, rounded to 0 or 1 with the soft gradient",
        training_kl="in training, rounded gates",
        training_size="sum of the soft gates",
    ),
}
"""Name, as `gates.parametrisation` has it -> entry. The first without and the first with exact sizes are what `auto` chooses."""


def automatic(exact_sizes: bool) -> str:
    """Choose the parametrisation that `auto` stands for."""
    return next(name for name, one in PARAMETRISATIONS.items() if one.exact_sizes == exact_sizes)


def has_exact_sizes(name: str) -> bool:
    """Tell whether the gates of a parametrisation have the asked size by construction."""
    return PARAMETRISATIONS[name].exact_sizes
