"""Faithfulness against size: of the learned gates and of every baseline, at the sizes of the MIB benchmark."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.attribution.baselines import BASELINES, by_chance
from bigcircuit.attribution.node_scores import NodeScores, level_size, strengths
from bigcircuit.evaluation.circuit_scores import HeldOut
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.open_circuits import LoadedCircuit
from bigcircuit.evaluation.ranking import Sized, sized
from bigcircuit.evaluation.scorer import Scorer
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.mib import sizes
from bigcircuit.model.granularity import NODES
from bigcircuit.results.evaluation import Curve

_DRAWS = 10
"""Random rankings, of which the mean is the curve of chance."""


class _Ranked(NamedTuple):
    """A method and what it says of the nodes."""

    method: str
    circuit: str | None
    """Whose gates they are; None for baselines."""
    scores: Sequence[NodeScores]
    """Several where they are drawn at random."""
    ablation: Ablation


def curves(
    found: Sequence[tuple[LoadedCircuit, Scorer]],
    held: HeldOut,
    settings: EvaluationSettings,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Curve], list[str]]:
    """One curve a ranking and level, and a sentence for each that cannot be had.

    Baselines score nodes on the training pairs, everything is measured on held-out ones. The gates of each circuit are ranked
    under its own ablation, baselines under that of the first circuit.
    """
    made, missing = [], []
    bench = found[0][1]
    with Streams(bench.frozen, bench.ablation) as streams:
        for ranked in _rankings(found, streams, settings):
            for level in settings.levels:
                if level != "neuron" and level not in ranked.scores[0]:
                    missing.append(f"{ranked.method} has no scores of {NODES[level]}, so there is no curve of them.")
                    continue
                say(f"  curve of {ranked.method}, {NODES['total' if level == 'neuron' else level]}")
                asked = sizes(level_size(level, bench.frozen.shapes))
                with streams.under(ranked.ablation):
                    at_sizes = sized(
                        streams,
                        held.test,
                        ranked.scores,
                        level,
                        asked,
                        bench.passes,
                        settings.ranking,
                        settings.at_once,
                    )
                both = _curve(ranked, level, settings.ranking, at_sizes)
                if np.isnan(both.cpr):
                    nodes = NODES["total" if level == "neuron" else level]
                    missing.append(
                        f"With {ranked.ablation.name} ablation, closing {nodes} changes no mean logit difference, so there is no "
                        "curve of them."
                    )
                else:
                    made.append(both)
    for subject, _ in found if "learned" in settings.rankings else ():
        if not subject.circuit.log_alpha:
            missing.append(f"{subject.name} has no log_alpha in its file, so there is no curve of learned gates.")
    return sorted(made, key=lambda one: settings.levels.index(one.level)), list(dict.fromkeys(missing))


def _curve(ranked: _Ranked, level: str, ranking: str, found: Sized) -> Curve:
    both, apart = found.areas()
    (cpr, cpr_low, cpr_high), (cmd, cmd_low, cmd_high) = np.stack(both, axis=-1).tolist()
    cpr_sd, cmd_sd = apart.std(0).tolist()
    return Curve(
        method=ranked.method,
        circuit=ranked.circuit,
        level=level,
        ranking=ranking,
        draws=len(ranked.scores),
        cpr=cpr,
        cpr_low=cpr_low,
        cpr_high=cpr_high,
        cpr_sd=cpr_sd,
        cmd=cmd,
        cmd_low=cmd_low,
        cmd_high=cmd_high,
        cmd_sd=cmd_sd,
        points=found.points(),
    )


def _rankings(
    found: Sequence[tuple[LoadedCircuit, Scorer]], streams: Streams, settings: EvaluationSettings
) -> Iterator[_Ranked]:
    first = found[0][1]
    for subject, bench in found if "learned" in settings.rankings else ():
        if subject.circuit.log_alpha:
            scores = strengths(subject.circuit.log_alpha, first.frozen.shapes)
            yield _Ranked("learned", subject.name, [scores], bench.ablation)
    for method, baseline in BASELINES.items():
        if method in settings.rankings:
            if baseline is by_chance:
                drawn = [by_chance(streams, (), first.passes, seed) for seed in range(_DRAWS)]
            else:
                drawn = [baseline(streams, first.train, first.passes)]
            yield _Ranked(method, None, drawn, first.ablation)
