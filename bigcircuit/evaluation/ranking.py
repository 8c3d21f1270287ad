"""Circuits of the best-ranked nodes, and their scores at each size.

Shapes: D rankings, S sizes, N examples, R resamplings of the examples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigcircuit.attribution.node_scores import LEVELS, NodeScores, flat, level_size, rows
from bigcircuit.errors import UserError
from bigcircuit.gates.discretise import Masks, count, discretise
from bigcircuit.metrics.bootstrap import Intervals, intervals
from bigcircuit.metrics.mib import Ranking, areas, faithfulness, ranked
from bigcircuit.metrics.registry import match_of, preference_of
from bigcircuit.metrics.score import ExampleScores
from bigcircuit.model.granularity import GRANULARITIES, LayerShape, granularities_of
from bigcircuit.results.evaluation import CurvePoint


def circuits_of(
    scores: NodeScores,
    level: str,
    sizes: Sequence[int],
    shapes: Sequence[LayerShape],
    ranking: Ranking = "signed",
) -> list[Masks]:
    """Make, for every size, the circuit of the best nodes of a level, with all other nodes open.

    level: `neuron` (attention and MLP neurons ranked together) or a granularity. sizes: nodes of the level to keep. ranking: by
    score or by its absolute value. Raises UserError for a level that is not known or not scored.
    """
    if level not in LEVELS:
        raise UserError(f"level {level} is not known; use any of {', '.join(LEVELS)}")
    names = [name for name in granularities_of(shapes) if name in LEVELS[level]]
    if missing := [name for name in names or LEVELS[level] if name not in scores]:
        raise UserError(f"level {level}: the ranking has no scores of {missing[0]}; use any of {', '.join(scores)}")
    # Ranks from 1 (worst) up, the same for equal scores: gates that are all above 0 close for their size alone.
    values = ranked(flat(scores, level, shapes).double().cpu(), ranking)
    ranks = torch.unique(values, return_inverse=True)[1] + 1.0
    parts = iter(ranks.split([GRANULARITIES[name].width(shape) for name in names for shape in shapes]))
    gates = {name: rows([next(parts) for _ in shapes]) for name in names}
    sized = "total" if level == "neuron" else level
    return [discretise(gates, shapes, {sized: size}) for size in sizes]


class ScoresBySize(NamedTuple):
    """Scores of the best nodes of a level at several sizes, by one ranking or by several that are drawn at random."""

    nodes: int
    """Nodes of the level in the model."""
    sizes: Sequence[int]
    neurons: list[int]
    """[S], site neurons kept by the first ranking."""
    kl: np.ndarray
    """[D, S, N], as `logit_difference` and `exact_match`; on text these two are log-likelihood and agreement of documents."""
    logit_difference: np.ndarray
    exact_match: np.ndarray
    ends: np.ndarray
    """[2, N], logit difference of the empty circuit, in which all nodes of the level and no others are closed, and of the full
    model."""

    def _faithfulness(self, means: np.ndarray) -> np.ndarray:
        """Compute faithfulness from the mean logit differences of all circuits and both ends, [..., D S + 2] -> [..., D, S]."""
        values = faithfulness(means[..., :-2], means[..., -2:-1], means[..., -1:])
        return values.reshape(*values.shape[:-1], len(self.kl), len(self.sizes))

    def _differences(self) -> np.ndarray:
        """Stack the logit differences of all circuits and both ends, [D S + 2, N]."""
        return np.concatenate([self.logit_difference.reshape(-1, self.ends.shape[1]), self.ends])

    def areas(self) -> tuple[Intervals, np.ndarray]:
        """Compute CPR and CMD: means over rankings with intervals over examples, [2], and values of each ranking, [D, 2].

        The sizes must be those of the MIB benchmark.
        """

        def each(means: np.ndarray) -> np.ndarray:
            return np.stack(areas(self._faithfulness(means)), axis=-1)

        values = self._differences()
        return intervals(values, lambda means: each(means).mean(-2)), each(values.mean(-1))

    def points(self) -> list[CurvePoint]:
        """Average over rankings and examples at every size, with intervals over examples."""
        values = self._differences()
        faithful = intervals(values, lambda means: self._faithfulness(means).mean(-2))
        kl = intervals(self.kl.mean(0))
        faithful_sd, kl_sd = self._faithfulness(values.mean(-1)).std(0), self.kl.mean(-1).std(0)
        return [
            CurvePoint(
                fraction=size / self.nodes,
                size=size,
                neurons=self.neurons[index],
                kl=float(kl.mean[index]),
                kl_low=float(kl.low[index]),
                kl_high=float(kl.high[index]),
                kl_sd=float(kl_sd[index]),
                logit_difference=float(self.logit_difference[:, index].mean()),
                exact_match=float(self.exact_match[:, index].mean()),
                faithfulness=float(faithful.mean[index]),
                low=float(faithful.low[index]),
                high=float(faithful.high[index]),
                sd=float(faithful_sd[index]),
            )
            for index, size in enumerate(self.sizes)
        ]


def scores_by_size(
    score: Callable[[Sequence[Masks]], ExampleScores],
    rankings: Sequence[NodeScores],
    level: str,
    sizes: Sequence[int],
    shapes: Sequence[LayerShape],
    ranking: Ranking = "signed",
) -> ScoresBySize:
    """Score the best nodes of a level at each size, by each ranking. score: scores circuits on N examples."""
    nodes = level_size(level, shapes)
    circuits = [masks for scores in rankings for masks in circuits_of(scores, level, sizes, shapes, ranking)]
    ends = circuits_of(rankings[0], level, [0, nodes], shapes, ranking)
    found = score([*circuits, *ends])

    def by_size(values: Tensor) -> np.ndarray:
        return values[:-2].double().numpy().reshape(len(rankings), len(sizes), values.shape[1])

    return ScoresBySize(
        nodes=nodes,
        sizes=sizes,
        neurons=[count(masks)["total"] for masks in circuits[: len(sizes)]],
        kl=by_size(found["kl"]),
        logit_difference=by_size(found[preference_of(found)]),
        exact_match=by_size(found[match_of(found)]),
        ends=found[preference_of(found)][-2:].double().numpy(),
    )
