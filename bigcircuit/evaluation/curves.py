"""Faithfulness against size: of the learned gates and of every baseline, at the sizes of the MIB benchmark."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.attribution.baselines import BASELINES, LEARNED_GATES
from bigcircuit.attribution.node_scores import NodeScores, level_size, strengths
from bigcircuit.evaluation.circuit_scores import HeldOut
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.open_circuits import LoadedCircuit
from bigcircuit.evaluation.ranking import ScoresBySize, scores_by_size
from bigcircuit.evaluation.scorer import Scorer, ScoringContext
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.mib import Ranking, sizes
from bigcircuit.metrics.score import ExampleScores, score
from bigcircuit.model.granularity import NODE_NAMES
from bigcircuit.results.evaluation import Curve

_DRAWS = 10
"""Random rankings, of which the mean is the curve of a random baseline."""


class _Ranked(NamedTuple):
    """A ranking of nodes: the method, its scores, and the ablation under which circuits of the best nodes are scored."""

    method: str
    circuit: str | None
    """Name of the circuit whose gates are ranked; None for baselines."""
    scores: Sequence[NodeScores]
    """Several where the scores are drawn at random."""
    ablation: Ablation
    only: str = ""
    """The one level that it ranks; empty where it ranks all."""


def measure_curves(
    circuits: Sequence[tuple[LoadedCircuit, Scorer]],
    held_out: HeldOut,
    settings: EvaluationSettings,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Curve], list[str]]:
    """Measure one curve per ranking and level; return the curves, and a sentence for each that cannot be measured.

    Baselines score nodes on the training pairs, everything is measured on held-out pairs. The gates of each circuit are ranked
    under its own ablation, baselines under that of the first circuit. say: prints a line of progress.
    """
    measured, missing = [], []
    first = circuits[0][1]
    shapes = first.context.frozen.shapes
    there = [level for level in settings.levels if level_size(level, shapes)]
    if "levels" in settings.model_fields_set:
        absent = (level for level in settings.levels if level not in there)
        missing += [f"The model has no {NODE_NAMES[level]}, so there is no curve of them." for level in absent]
    with Streams(first.context.frozen, first.ablation, kept=first.context.kept) as streams:
        for ranked in _rankings(circuits, streams, settings, there):
            for level in there:
                if ranked.only and level != ranked.only:
                    continue
                if level != "neuron" and level not in ranked.scores[0]:
                    missing.append(
                        f"{ranked.method} has no scores of {NODE_NAMES[level]}, so there is no curve of them."
                    )
                    continue
                nodes = NODE_NAMES["total" if level == "neuron" else level]
                say(f"  curve of {ranked.method}, {nodes}")
                curve = _measure(ranked, level, streams, first.context, held_out, settings)
                if np.isnan(curve.cpr):
                    missing.append(
                        f"With {ranked.ablation.name} ablation, closing {nodes} changes no mean logit difference, so there is no "
                        "curve of them."
                    )
                else:
                    measured.append(curve)
    for loaded, _ in circuits if LEARNED_GATES in settings.rankings else ():
        if not loaded.circuit.log_alpha:
            missing.append(f"{loaded.name} has no log_alpha in its file, so there is no curve of learned gates.")
    return sorted(measured, key=lambda curve: settings.levels.index(curve.level)), list(dict.fromkeys(missing))


def _rankings(
    circuits: Sequence[tuple[LoadedCircuit, Scorer]],
    streams: Streams,
    settings: EvaluationSettings,
    levels: Sequence[str],
) -> Iterator[_Ranked]:
    """Yield the ranking of each circuit's gates, then that of each baseline, as far as the settings ask for them.

    levels: those that the model has.
    """
    first = circuits[0][1]
    context = first.context
    for loaded, scorer in circuits if LEARNED_GATES in settings.rankings else ():
        if loaded.circuit.log_alpha:
            gates = strengths(loaded.circuit.log_alpha, context.frozen.shapes)
            yield _Ranked(LEARNED_GATES, loaded.name, [gates], scorer.ablation)
    for method, baseline in BASELINES.items():
        can = not baseline.refusal(context.frozen.shapes) and (not baseline.only or baseline.only in levels)
        if method in settings.rankings and can:
            scores = baseline.draw(streams, context.train, context.micro_batches, _DRAWS)
            yield _Ranked(method, None, scores, first.ablation, baseline.only)


def _measure(
    ranked: _Ranked,
    level: str,
    streams: Streams,
    context: ScoringContext,
    held_out: HeldOut,
    settings: EvaluationSettings,
) -> Curve:
    """Score the circuits of the best nodes of a level at the sizes of the MIB benchmark, on the test pairs."""

    def score_circuits(circuits: Sequence[Masks]) -> ExampleScores:
        phase = f"curve of {ranked.method}"
        return score(streams, held_out.test, circuits, context.micro_batches, settings.at_once, phase=phase)

    shapes = context.frozen.shapes
    ranking = cast(Ranking, settings.ranking)  # the settings are validated
    with streams.under(ranked.ablation):
        by_size = scores_by_size(
            score_circuits, ranked.scores, level, sizes(level_size(level, shapes)), shapes, ranking
        )
    return _curve(ranked, level, ranking, by_size)


def _curve(ranked: _Ranked, level: str, ranking: str, by_size: ScoresBySize) -> Curve:
    """Make the entry of evaluation.json."""
    areas, by_draw = by_size.areas()
    (cpr, cpr_low, cpr_high), (cmd, cmd_low, cmd_high) = np.stack(areas, axis=-1).tolist()
    cpr_sd, cmd_sd = by_draw.std(0).tolist()
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
        points=by_size.points(),
    )
