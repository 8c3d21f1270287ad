"""Where circuits are scored under one ablation on one task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigcircuit.ablated import Ablation
from bigcircuit.ablation import mean_ablation
from bigcircuit.evaluation.scores import ExampleScores, score
from bigcircuit.frozen.sites import FrozenModel
from bigcircuit.streams import Streams
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes

LEARNED = "optimal"
"""The ablation whose constants are one circuit's own."""


@dataclass(frozen=True)
class Bench:
    """Scores any number of circuits; each optimal ablation is learned on the training pairs first."""

    frozen: FrozenModel
    ablation: Ablation
    """Without constants, where it is to be learned."""
    train: Sequence[Example]
    passes: Passes
    at_once: int

    @property
    def learned(self) -> bool:
        """Whether every circuit gets constants of its own, which takes training."""
        return self.ablation.name == LEARNED and self.ablation.constants is None

    def __call__(self, examples: Sequence[Example], circuits: Sequence[Mapping[str, Tensor]]) -> ExampleScores:
        """Scores of P circuits."""
        if not self.learned:
            with Streams(self.frozen, self.ablation) as streams:
                return score(streams, examples, circuits, self.passes, self.at_once)
        from bigcircuit.ablation import optimal_ablation

        parts = []
        for start in range(0, len(circuits), self.at_once):
            chunk = circuits[start : start + self.at_once]
            ablation = optimal_ablation(self.frozen, chunk, self.train, self.passes)
            with Streams(self.frozen, ablation) as streams:
                parts.append(score(streams, examples, chunk, self.passes))
        return ExampleScores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def make_ablation(
    name: str, frozen: FrozenModel, averaged: Sequence[Example], passes: Passes, prompts: str
) -> Ablation:
    """An ablation by name, with means over the `prompts` of the pairs `averaged` where it takes any."""
    if name in ("mean", "mean_per_position"):
        return mean_ablation(frozen, averaged, passes, per_position=name != "mean", prompts=prompts)
    return Ablation(name)
