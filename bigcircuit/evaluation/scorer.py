"""Scoring of circuits under one ablation on one task.

Shapes: P circuits.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import ZERO, Ablation, Moments
from bigcircuit.ablation.kinds import KINDS, LEARNED
from bigcircuit.ablation.learned import ConstantsStart
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.evaluation.ablation_constants import CircuitConstants
from bigcircuit.forward.activation_means import moments
from bigcircuit.forward.kept_passes import KeptPasses
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.score import ExampleScores, score
from bigcircuit.model.sites import FrozenModel
from bigcircuit.train.optimal_ablation import optimal_ablation


class ScoringContext(NamedTuple):
    """Model and training pairs of a task, which its scorers share."""

    frozen: FrozenModel
    train: Sequence[Example]
    """Training pairs: constants are measured and learned on them."""
    micro_batches: MicroBatches
    at_once: int
    """Circuits that share a pass."""
    kept: KeptPasses | None = None
    """Where plain passes are kept for the circuits scored next."""
    names: Collection[str] = ()
    """Granularities of all circuits, which decide what is measured: see `measured_sites`."""


class ConstantFitter:
    """Learns constants for circuits that have none, on the training pairs, from the means on."""

    def __init__(self, context: ScoringContext, means: Moments) -> None:
        self._context = context
        self._start = ConstantsStart.at_means(means, context.frozen.shapes)
        with Streams(context.frozen, ZERO) as streams:
            references = ReferenceLogits(streams, context.train, context.micro_batches)
            self._targets = Targets(context.train, references, full=False)

    def __call__(self, circuits: Sequence[Masks]) -> Ablation:
        """Fit the optimal ablation of P circuits."""
        context = self._context
        with Streams(context.frozen, ZERO) as streams:
            return optimal_ablation(streams, circuits, self._targets, context.micro_batches, self._start)


@dataclass(frozen=True)
class Scorer:
    """Scores any number of circuits under one ablation."""

    context: ScoringContext
    constants: Ablation | ConstantFitter
    """The ablation that all circuits share, or what fits constants to each circuit."""

    @property
    def fits_constants(self) -> bool:
        """Whether constants are fitted to each circuit without any, which takes training."""
        return isinstance(self.constants, ConstantFitter)

    @property
    def ablation(self) -> Ablation:
        """The ablation that all circuits share; there must be one, see `fits_constants`."""
        assert isinstance(self.constants, Ablation), "every circuit has constants of its own"
        return self.constants

    def with_constants(self, ablation: Ablation) -> "Scorer":
        """Make a scorer that puts all circuits under these constants."""
        return replace(self, constants=ablation)

    def __call__(
        self,
        examples: Sequence[Example],
        circuits: Sequence[Masks],
        known: Sequence[Ablation | None] = (),
        phase: str = "scoring",
    ) -> ExampleScores:
        """Score P circuits. known: constants of the first circuits; constants are fitted for None and for the circuits after.

        phase: name under which the passes are shown.
        """
        context = self.context
        if isinstance(self.constants, Ablation):
            with Streams(context.frozen, self.constants, kept=context.kept) as streams:
                return score(streams, examples, circuits, context.micro_batches, context.at_once, phase=phase)
        known = [*known, *[None] * (len(circuits) - len(known))]
        parts, starts = [], range(0, len(circuits), context.at_once)
        with context.micro_batches.progress.phase(
            f"{phase} with constants of their own", len(starts), "groups"
        ) as groups:
            for start in starts:
                rows = slice(start, start + context.at_once)
                constants = self._fill(self.constants, circuits[rows], known[rows])
                with Streams(context.frozen, constants, kept=context.kept) as streams:
                    parts.append(score(streams, examples, circuits[rows], context.micro_batches, phase=phase))
                groups.advance()
        return ExampleScores({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _fill(self, fit: ConstantFitter, circuits: Sequence[Masks], known: Sequence[Ablation | None]) -> Ablation:
        """Join the constants of all circuits, fitted where they are not known."""
        unknown = [index for index, ablation in enumerate(known) if ablation is None]
        fitted = fit([circuits[index] for index in unknown]) if unknown else None
        rows: list[Mapping[str, Tensor]] = []
        for index, ablation in enumerate(known):
            if ablation is not None:
                ablation = ablation.to(self.context.frozen.device)
            elif fitted is not None:
                ablation = fitted.of([unknown.index(index)])
            assert ablation is not None and ablation.constants is not None
            rows.append(ablation.constants)
        sites = set.intersection(*map(set, rows))  # a file has the sites on which gates act
        return Ablation(LEARNED, {site: torch.cat([row[site] for row in rows]) for site in sorted(sites)})


def make_scorer(ablation: str, context: ScoringContext, constants: CircuitConstants) -> Scorer:
    """Make the scorer of a circuit under an ablation, and of all circuits whose constants have the same origin."""
    kind, data = KINDS[ablation], constants.data
    if data is None:
        return Scorer(context, constants.saved or Ablation(ablation))
    found = moments(
        context.frozen,
        data.examples(context.train),
        context.micro_batches,
        per_position=kind.per_position,
        prompts=data.prompts,
        names=context.names,
    )
    return Scorer(context, ConstantFitter(context, found) if kind.learned else found.ablation(ablation))
