"""Faithfulness against size: of the learned gates and of every baseline, at the sizes of the MIB benchmark."""

from collections.abc import Iterator, Sequence

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


def curves(subjects: Sequence[Subject], bench: Bench, held: Held, settings: EvaluationSettings) -> list[Curve]:
    """One curve a ranking and level; baselines score nodes on the training pairs, everything is measured on held-out ones."""
    found = []
    shapes = bench.frozen.shapes
    with Streams(bench.frozen, bench.ablation) as streams:
        for method, circuit, scores in _rankings(subjects, bench, streams, settings):
            for level in settings.levels:
                if level == "neuron" or level in scores:
                    asked = sizes(level_size(level, shapes))
                    points = curve(
                        streams, held.test, scores, level, asked, bench.passes, settings.ranking, settings.at_once
                    )
                    both = areas([point.faithfulness for point in points])
                    found.append(Curve(method, circuit, level, settings.ranking, both.cpr, both.cmd, points))
    return sorted(found, key=lambda one: settings.levels.index(one.level))


def _rankings(
    subjects: Sequence[Subject], bench: Bench, streams: Streams, settings: EvaluationSettings
) -> Iterator[tuple[str, str | None, NodeScores]]:
    """Method, the circuit whose gates they are, and scores of nodes."""
    for subject in subjects if "learned" in settings.methods else ():
        if subject.circuit.log_alpha:
            yield "learned", subject.name, strengths(subject.circuit.log_alpha, bench.frozen.shapes)
    for method in settings.methods:
        if method in BASELINES:
            yield method, None, BASELINES[method](streams, bench.train, bench.passes)
