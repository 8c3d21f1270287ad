"""Tables of an evaluation on the terminal."""

import io
from dataclasses import replace

import pytest

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.console import score_table, show_evaluation
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.evaluation.verdict import with_verdict
from bigcircuit.metrics.registry import SCORES
from bigcircuit.results.evaluation import Cell
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.runtime.progress import ProgressDisplay
from tests.helpers.short_runs import FAST, run


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = run(tmp_path_factory.mktemp("console") / "run", task__split__by="template").path
    return evaluate_circuits([str(folder)], EvaluationSettings(**{**FAST, "ablations": "interchange"}), Ranks())


def shown(table, width):
    stream = io.StringIO()
    PlainConsole(file=stream, width=width).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [84, 100, 120, 140, 180, 220])
def test_scores_have_headings_of_the_table_and_nothing_is_cut_off(result, width):
    text = shown(score_table(result, "interchange", width), width)
    assert "…" not in text
    kinds = [kind for kind in SCORES.values() if "pairs" in kind.on]
    narrow, every = {kind.short for kind in kinds if kind.in_narrow}, {kind.short for kind in kinds}
    headings = {heading for heading in every if f" {heading} " in text}
    assert headings in (narrow, every) and (headings == every or width < 120)
    kl = result.circuits[0].ablations["interchange"].circuit["kl"]
    assert f"{kl.mean:.3f} [{kl.low:.3f}, {kl.high:.3f}]" in text
    for label in ("model", "circuit", "without it", "4 random", "new templates", "empty"):
        assert label in text


def test_with_room_all_scores_have_intervals(result):
    text = shown(score_table(result, "interchange", 260), 260)
    match = result.circuits[0].ablations["interchange"].circuit["exact_match"]
    assert f"{match.mean:.3f} [{match.low:.3f}, {match.high:.3f}]" in text


def test_circuits_on_tasks_show_the_headline_scores(result):
    circuit = result.circuits[0]
    scores = circuit.ablations["interchange"].circuit
    crossed = replace(result, cross={"interchange": [Cell(circuit.name, task, True, scores) for task in result.tasks]})
    stream = io.StringIO()
    show_evaluation(crossed, ProgressDisplay(True, console=PlainConsole(file=stream, width=120)))
    text = " ".join(stream.getvalue().split())
    assert "circuits (rows) on tasks: KL / match" in text
    assert f"{scores['kl'].mean:.3f} / {scores['exact_match'].mean:.0%} *" in text
    assert "random order" in text and result.verdict in text


def test_sentences_and_answers_say_of_which_circuit_they_are(result):
    first = result.circuits[0]
    several = with_verdict(replace(result, circuits=[first, replace(first, name="other")]))
    stream = io.StringIO()
    show_evaluation(several, ProgressDisplay(True, console=PlainConsole(file=stream, width=120)))
    text = " ".join(stream.getvalue().split())
    assert (
        f"Of the first of 2 circuits, {first.name}: With interchange ablation" in text and f" of {first.name}: " in text
    )
    beside_a_control = with_verdict(replace(result, circuits=[first, replace(first, name="other", control=True)]))
    assert "Of the first" not in beside_a_control.verdict + result.verdict
