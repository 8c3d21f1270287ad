"""Ablation kinds: the one table of what closed nodes output instead of their activation.

Config choices, file checks, forward passes, memory, evaluation, report and help read this table; a new kind is a new entry. It is
plain data: none of our other modules and no torch are imported here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

TENSORS = {"constants": "ablation", "deviations": "ablation_deviation"}
"""Tensors that an ablation may need, by site -> prefix of their names in a circuit file. They begin as moments of the site's
activations over a data set: `constants` as the means, `deviations` as the standard deviations."""
_PER_POSITION = "_per_position"


class AblationKind(NamedTuple):
    """Everything in which one kind differs from another."""

    description: str
    """What closed nodes output, for help and report."""
    label: str
    """The kind and its output in a few words, for the table of facts of a page."""
    needs_corrupted: bool = False
    """Whether masked passes run the corrupted prompts too, and closed nodes output their activation there."""
    tensors: tuple[str, ...] = ()
    """Which of TENSORS it needs; empty for kinds that measure nothing. A circuit file holds all of them or none."""
    per_position: bool = False
    """Whether constants may differ from position to position."""
    learned: bool = False
    """Whether constants are trained with the gates, from the means on."""
    sample: "Callable[[Tensor, Tensor, Tensor], Tensor] | None" = None
    """constants, deviations, standard normal noise, all broadcastable to [P, R, T, w] -> what closed nodes output. None: the
    constants themselves, or zero without any."""

    @property
    def is_measured(self) -> bool:
        """Whether its tensors are moments as they were measured, and not learned."""
        return bool(self.tensors) and not self.learned

    @property
    def needs_moments(self) -> bool:
        """Whether activations are measured over a data set first, see `ablation.data` and `ablation.prompts`."""
        return bool(self.tensors)

    @property
    def needs_positions(self) -> bool:
        """Whether what closed nodes output depends on the position of a token."""
        return self.per_position or self.sample is not None


KINDS: dict[str, AblationKind] = {
    "interchange": AblationKind(
        description="its activation on the corrupted prompt",
        label="interchange: their activation on the corrupted prompt",
        needs_corrupted=True,
    ),
    "zero": AblationKind(description="nothing", label="zero: nothing"),
    "mean": AblationKind(
        description="its mean over a data set", label="mean: their mean over a data set", tensors=("constants",)
    ),
    "mean_per_position": AblationKind(
        description="its mean at each position over a data set",
        label="mean per position: their mean at each position over a data set",
        tensors=("constants",),
        per_position=True,
    ),
    "optimal": AblationKind(
        description="a constant that is learned with the gates (arXiv 2409.09951), from the mean on",
        label="optimal: a constant learned with the gates",
        tensors=("constants",),
        learned=True,
    ),
    "noise": AblationKind(
        description="its mean plus Gaussian noise with its measured standard deviation, drawn for every token of every example",
        label="noise: their mean plus Gaussian noise with their standard deviation",
        tensors=("constants", "deviations"),
        sample=lambda constants, deviations, noise: constants + deviations * noise,
    ),
}
"""Full name, as it stands beside scores and in circuit files -> kind. The first entry is the default."""


DEFAULT = next(iter(KINDS))
LEARNED = next(name for name, kind in KINDS.items() if kind.learned)
"""The kind whose constants are trained."""


def config_kinds() -> tuple[str, ...]:
    """Choices of `ablation.kind`: the full names without the variants that `ablation.per_position` chooses."""
    return tuple(name for name, kind in KINDS.items() if not kind.per_position)


def full_name(kind: str, per_position: bool) -> str:
    """Name of a kind as it stands beside scores."""
    return kind + _PER_POSITION if per_position else kind


def with_moments() -> tuple[str, ...]:
    """Choices of `ablation.kind` that measure activations over a data set."""
    return tuple(name for name in config_kinds() if KINDS[name].needs_moments)
