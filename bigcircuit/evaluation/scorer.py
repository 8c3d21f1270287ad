"""Where circuits are scored under one ablation on one task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import ZERO, Ablation
from bigcircuit.ablation.kinds import KINDS, LEARNED
from bigcircuit.ablation.learned import ConstantsStart
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.activation_means import moments
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import ExampleScores, score
from bigcircuit.model.sites import FrozenModel
from bigcircuit.train.optimal_ablation import optimal_ablation


class ConstantFitter:
    """Learns constants for circuits that have none of their own, on the training pairs, from the means on."""

    def __init__(
        self,
        frozen: FrozenModel,
        train: Sequence[Example],
        averaged: Sequence[Example],
        prompts: str,
        micro_batches: MicroBatches,
    ) -> None:
        """averaged, prompts: what the means are taken over, see `moments`."""
        self._frozen, self._micro_batches = frozen, micro_batches
        found = moments(frozen, averaged, micro_batches, per_position=False, prompts=prompts)
        self._start = ConstantsStart.at_means(found, frozen.shapes)
        with Streams(frozen, ZERO) as streams:
            self._lessons = Targets(train, ReferenceLogits(streams, train, micro_batches), full=False)

    def __call__(self, circuits: Sequence[Mapping[str, Tensor]]) -> Ablation:
        """The optimal ablation of P circuits."""
        with Streams(self._frozen, ZERO) as streams:
            return optimal_ablation(streams, circuits, self._lessons, self._micro_batches, self._start)


@dataclass(frozen=True)
class Scorer:
    """Scores any number of circuits under one ablation."""

    frozen: FrozenModel
    ablation: Ablation | None
    """None where every circuit has constants of its own."""
    train: Sequence[Example]
    micro_batches: MicroBatches
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
            assert self.ablation is not None
            with Streams(self.frozen, self.ablation) as streams:
                return score(streams, examples, circuits, self.micro_batches, self.at_once)
        found = [*known, *[None] * (len(circuits) - len(known))]
        parts = []
        for start in range(0, len(circuits), self.at_once):
            chunk = circuits[start : start + self.at_once]
            with Streams(self.frozen, self._constants(chunk, found[start : start + self.at_once])) as streams:
                parts.append(score(streams, examples, chunk, self.micro_batches))
        return ExampleScores({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

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
    micro_batches: MicroBatches,
    at_once: int,
) -> Scorer:
    """A bench for an ablation by name. averaged, prompts: what means are taken over, where it takes any."""
    kind = KINDS[name]
    if kind.learned:
        fitter = ConstantFitter(frozen, train, averaged, prompts, micro_batches)
        return Scorer(frozen, None, train, micro_batches, at_once, fitter)
    if not kind.needs_moments:
        return Scorer(frozen, Ablation(name), train, micro_batches, at_once)
    found = moments(frozen, averaged, micro_batches, per_position=kind.per_position, prompts=prompts)
    return Scorer(frozen, found.ablation(name), train, micro_batches, at_once)
