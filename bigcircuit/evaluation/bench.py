"""Where circuits are scored under one ablation on one task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigcircuit.ablated import ZERO, Ablation
from bigcircuit.ablation import mean_ablation, moments
from bigcircuit.evaluation.scores import ExampleScores, score
from bigcircuit.frozen.sites import FrozenModel
from bigcircuit.optimal import NAME as LEARNED
from bigcircuit.optimal import Lessons, Start, optimal_ablation
from bigcircuit.references import References
from bigcircuit.streams import Streams
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes

MEANS = ("mean", "mean_per_position")


class Teacher:
    """Learns constants for circuits that have none of their own, on the training pairs, from the means on."""

    def __init__(
        self, frozen: FrozenModel, train: Sequence[Example], averaged: Sequence[Example], prompts: str, passes: Passes
    ) -> None:
        """averaged, prompts: what the means are taken over, see `moments`."""
        self._frozen, self._passes = frozen, passes
        found = moments(frozen, averaged, passes, per_position=False, prompts=prompts)
        self._start = Start.at_means(found, frozen.shapes)
        with Streams(frozen, ZERO) as streams:
            self._lessons = Lessons(train, References(streams, train, passes), full=False)

    def __call__(self, circuits: Sequence[Mapping[str, Tensor]]) -> Ablation:
        """The optimal ablation of P circuits."""
        with Streams(self._frozen, ZERO) as streams:
            return optimal_ablation(streams, circuits, self._lessons, self._passes, self._start)


@dataclass(frozen=True)
class Bench:
    """Scores any number of circuits under one ablation."""

    frozen: FrozenModel
    ablation: Ablation
    """Without constants, where every circuit has its own."""
    train: Sequence[Example]
    passes: Passes
    at_once: int
    teacher: Teacher | None = None
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


def make_bench(
    name: str,
    frozen: FrozenModel,
    train: Sequence[Example],
    averaged: Sequence[Example],
    prompts: str,
    passes: Passes,
    at_once: int,
) -> Bench:
    """A bench for an ablation by name. averaged, prompts: what means are taken over, where it takes any."""
    if name in MEANS:
        ablation = mean_ablation(frozen, averaged, passes, per_position=name != "mean", prompts=prompts)
        return Bench(frozen, ablation, train, passes, at_once)
    teacher = Teacher(frozen, train, averaged, prompts, passes) if name == LEARNED else None
    return Bench(frozen, Ablation(name), train, passes, at_once, teacher)
