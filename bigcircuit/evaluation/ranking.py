"""From scores of nodes to circuits of the best ones, and how faithful those are at each size.

Shapes: D rankings, S sizes, N examples, R resamplings of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from bigcircuit.attribution.node_scores import LEVELS, NodeScores, flat, level_size, rows
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks, count, discretise
from bigcircuit.metrics.bootstrap import Intervals, intervals
from bigcircuit.metrics.mib import Ranking, areas, faithfulness, ranked
from bigcircuit.metrics.score import score
from bigcircuit.model.granularity import GRANULARITIES, LayerShape
from bigcircuit.results.evaluation import CurvePoint


def circuits_of(
    scores: NodeScores,
    level: str,
    sizes: Sequence[int],
    shapes: Sequence[LayerShape],
    ranking: Ranking = "signed",
) -> list[Masks]:
    """For every size the circuit of the best nodes of a level, all of it open otherwise.

    level: `neuron` (attention and MLP neurons ranked together) or a granularity. ranking: by score or by its absolute value.
    Raises UserError for a level that is not known or not scored.
    """
    if level not in LEVELS:
        raise UserError(f"level {level} is not known; use any of {', '.join(LEVELS)}")
    if missing := [name for name in LEVELS[level] if name not in scores]:
        raise UserError(f"level {level}: the ranking has no scores of {missing[0]}; use any of {', '.join(scores)}")
    # Places from 1 (worst) up, the same for equal scores: gates that are all above 0 close for their size alone.
    values = ranked(flat(scores, level, shapes).double().cpu(), ranking)
    places = torch.unique(values, return_inverse=True)[1] + 1.0
    parts = iter(places.split([GRANULARITIES[name].width(shape) for name in LEVELS[level] for shape in shapes]))
    gates = {name: rows([next(parts) for _ in shapes]) for name in LEVELS[level]}
    asked = "total" if level == "neuron" else level
    return [discretise(gates, shapes, {asked: size}) for size in sizes]


class Sized(NamedTuple):
    """The best nodes of a level at several sizes, by one ranking or by several that are drawn at random."""

    nodes: int
    """Of the level."""
    sizes: Sequence[int]
    neurons: list[int]
    """[S], site neurons kept by the first ranking."""
    kl: np.ndarray
    """[D, S, N], as those below."""
    logit_difference: np.ndarray
    exact_match: np.ndarray
    ends: np.ndarray
    """[2, N], logit difference of the empty circuit, which has every node of the level closed and the others open, and of the
    full model."""

    def _faithfulness(self, means: np.ndarray) -> np.ndarray:
        """Means of the logit differences in one row and of both ends, [..., D S + 2] -> [..., D, S]."""
        found = faithfulness(means[..., :-2], means[..., -2:-1], means[..., -1:])
        return found.reshape(*found.shape[:-1], len(self.kl), len(self.sizes))

    def _differences(self) -> np.ndarray:
        return np.concatenate([self.logit_difference.reshape(-1, self.ends.shape[1]), self.ends])

    def areas(self) -> tuple[Intervals, np.ndarray]:
        """CPR and CMD, means over rankings with intervals over examples, [2], and of each ranking, [D, 2].

        The sizes must be those of the MIB benchmark.
        """

        def each(means: np.ndarray) -> np.ndarray:
            return np.stack(areas(self._faithfulness(means)), axis=-1)

        values = self._differences()
        return intervals(values, lambda means: each(means).mean(-2)), each(values.mean(-1))

    def points(self) -> list[CurvePoint]:
        """Means over rankings and examples at every size, with intervals over examples."""
        values = self._differences()
        found = intervals(values, lambda means: self._faithfulness(means).mean(-2))
        kl = intervals(self.kl.mean(0))
        apart = self._faithfulness(values.mean(-1)).std(0), self.kl.mean(-1).std(0)
        return [
            CurvePoint(
                fraction=size / self.nodes,
                size=size,
                neurons=self.neurons[index],
                kl=float(kl.mean[index]),
                kl_low=float(kl.low[index]),
                kl_high=float(kl.high[index]),
                kl_sd=float(apart[1][index]),
                logit_difference=float(self.logit_difference[:, index].mean()),
                exact_match=float(self.exact_match[:, index].mean()),
                faithfulness=float(found.mean[index]),
                low=float(found.low[index]),
                high=float(found.high[index]),
                sd=float(apart[0][index]),
            )
            for index, size in enumerate(self.sizes)
        ]


def sized(
    streams: Streams,
    examples: Sequence[Example],
    rankings: Sequence[NodeScores],
    level: str,
    sizes: Sequence[int],
    passes: MicroBatches,
    ranking: Ranking = "signed",
    at_once: int = 8,
) -> Sized:
    """Score the best nodes of a level at each size, by each ranking. at_once: circuits that share a pass."""
    shapes = streams.frozen.shapes
    nodes = level_size(level, shapes)
    circuits = [one for scores in rankings for one in circuits_of(scores, level, sizes, shapes, ranking)]
    ends = circuits_of(rankings[0], level, [0, nodes], shapes, ranking)
    found = score(streams, examples, [*circuits, *ends], passes, at_once)
    kl, difference, match = (
        getattr(found, name)[:-2].double().numpy().reshape(len(rankings), len(sizes), len(examples))
        for name in ("kl", "logit_difference", "exact_match")
    )
    neurons = [count(masks)["total"] for masks in circuits[: len(sizes)]]
    return Sized(nodes, sizes, neurons, kl, difference, match, found.logit_difference[-2:].double().numpy())
