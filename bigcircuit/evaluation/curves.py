"""Faithfulness against size: of the learned gates and of every baseline, at the sizes of the MIB benchmark."""

from collections.abc import Iterator, Sequence

from bigcircuit.ablated import Ablation
from bigcircuit.evaluation.baselines import BASELINES
from bigcircuit.evaluation.bench import Bench
from bigcircuit.evaluation.measure import Held
from bigcircuit.evaluation.mib import areas, sizes
from bigcircuit.evaluation.node_scores import NodeScores, level_size, strengths
from bigcircuit.evaluation.ranking import curve
from bigcircuit.evaluation.result import Curve
from bigcircuit.evaluation.settings import EvaluationSettings
from bigcircuit.evaluation.subjects import Subject
from bigcircuit.streams import Streams


def curves(found: Sequence[tuple[Subject, Bench]], held: Held, settings: EvaluationSettings) -> list[Curve]:
    """One curve a ranking and level; baselines score nodes on the training pairs, everything is measured on held-out ones.

    The gates of each circuit are ranked under its own ablation, baselines under that of the first circuit.
    """
    made = []
    bench = found[0][1]
    shapes = bench.frozen.shapes
    with Streams(bench.frozen, bench.ablation) as streams:
        for method, circuit, scores, ablation in _rankings(found, streams, settings):
            for level in settings.levels:
                if level == "neuron" or level in scores:
                    asked = sizes(level_size(level, shapes))
                    with streams.under(ablation):
                        points = curve(
                            streams, held.test, scores, level, asked, bench.passes, settings.ranking, settings.at_once
                        )
                    both = areas([point.faithfulness for point in points])
                    made.append(Curve(method, circuit, level, settings.ranking, both.cpr, both.cmd, points))
    return sorted(made, key=lambda one: settings.levels.index(one.level))


def _rankings(
    found: Sequence[tuple[Subject, Bench]], streams: Streams, settings: EvaluationSettings
) -> Iterator[tuple[str, str | None, NodeScores, Ablation]]:
    """Method, the circuit whose gates they are, scores of nodes, and what closed nodes output."""
    first = found[0][1]
    for subject, bench in found if "learned" in settings.methods else ():
        if subject.circuit.log_alpha:
            yield "learned", subject.name, strengths(subject.circuit.log_alpha, first.frozen.shapes), bench.ablation
    for method in settings.methods:
        if method in BASELINES:
            yield method, None, BASELINES[method](streams, first.train, first.passes), first.ablation
