"""Where circuits are scored under one ablation on one task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import ZERO, Ablation
from bigcircuit.ablation.learned import ConstantsStart
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.activation_means import mean_ablation, moments
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import ExampleScores, score
from bigcircuit.model.sites import FrozenModel
from bigcircuit.train.optimal_ablation import NAME as LEARNED
from bigcircuit.train.optimal_ablation import optimal_ablation

MEANS = ("mean", "mean_per_position")


class ConstantFitter:
    """Learns constants for circuits that have none of their own, on the training pairs, from the means on."""

    def __init__(
        self,
        frozen: FrozenModel,
        train: Sequence[Example],
        averaged: Sequence[Example],
        prompts: str,
        passes: MicroBatches,
    ) -> None:
        """averaged, prompts: what the means are taken over, see `moments`."""
        self._frozen, self._passes = frozen, passes
        found = moments(frozen, averaged, passes, per_position=False, prompts=prompts)
        self._start = ConstantsStart.at_means(found, frozen.shapes)
        with Streams(frozen, ZERO) as streams:
            self._lessons = Targets(train, ReferenceLogits(streams, train, passes), full=False)

    def __call__(self, circuits: Sequence[Mapping[str, Tensor]]) -> Ablation:
        """The optimal ablation of P circuits."""
        with Streams(self._frozen, ZERO) as streams:
            return optimal_ablation(streams, circuits, self._lessons, self._passes, self._start)


@dataclass(frozen=True)
class Scorer:
    """Scores any number of circuits under one ablation."""

    frozen: FrozenModel
    ablation: Ablation
    """Without constants, where every circuit has its own."""
    train: Sequence[Example]
    passes: MicroBatches
    at_once: int
    teacher: ConstantFitter | None = None
    """Where every circuit has constants of its own."""

    @property
    def learned(self) -> bool:
        """Whether a circuit without constants has to learn them first, which takes training."""
        return self.teacher is not None

    def __call__(
        self,
        examples: Sequence[Example],
        circuits: Sequence[Mapping[str, Tensor]],
        known: Sequence[Ablation | None] = (),
    ) -> ExampleScores:
        """Scores of P circuits. known: of the first ones the constants they have; None where they are to be learned."""
        if self.teacher is None:
            with Streams(self.frozen, self.ablation) as streams:
                return score(streams, examples, circuits, self.passes, self.at_once)
        found = [*known, *[None] * (len(circuits) - len(known))]
        parts = []
        for start in range(0, len(circuits), self.at_once):
            chunk = circuits[start : start + self.at_once]
            with Streams(self.frozen, self._constants(chunk, found[start : start + self.at_once])) as streams:
                parts.append(score(streams, examples, chunk, self.passes))
        return ExampleScores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _constants(self, circuits: Sequence[Mapping[str, Tensor]], known: Sequence[Ablation | None]) -> Ablation:
        """The constants of every circuit, learned where they are not known."""
        assert self.teacher is not None
        rows = [None if one is None else one.to(self.frozen.device).constants for one in known]
        if unknown := [index for index, one in enumerate(rows) if one is None]:
            learned = self.teacher([circuits[index] for index in unknown])
            for place, index in enumerate(unknown):
                rows[index] = learned.of([place]).constants
        sites = set.intersection(*(set(one) for one in rows if one))  # a file has those that gates act on
        return Ablation(LEARNED, {site: torch.cat([one[site] for one in rows if one]) for site in sorted(sites)})


def make_scorer(
    name: str,
    frozen: FrozenModel,
    train: Sequence[Example],
    averaged: Sequence[Example],
    prompts: str,
    passes: MicroBatches,
    at_once: int,
) -> Scorer:
    """A bench for an ablation by name. averaged, prompts: what means are taken over, where it takes any."""
    if name in MEANS:
        ablation = mean_ablation(frozen, averaged, passes, per_position=name != "mean", prompts=prompts)
        return Scorer(frozen, ablation, train, passes, at_once)
    teacher = ConstantFitter(frozen, train, averaged, prompts, passes) if name == LEARNED else None
    return Scorer(frozen, Ablation(name), train, passes, at_once, teacher)
