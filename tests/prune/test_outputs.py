"""What a run shows and writes besides its circuit: numbers that padding cannot change, trackers, report, progress."""

import io
import json
import re
from importlib.util import find_spec

import pytest
import torch
from rich.console import Console

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import discretise
from bigcircuit.gates.population import Population
from bigcircuit.io.run_dir import RunDir
from bigcircuit.metrics.score import score
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.runtime.trackers import Trackers
from bigcircuit.train.summary_table import summary_sentence, summary_table
from tests.helpers.short_runs import run


@pytest.mark.parametrize("task", ["ioi", "induction", "greater_than"])
def test_padding_and_batch_size_change_no_score(embedded, task):
    frozen, tokenizer = embedded
    config = load(None, {"task.name": task, "task.size": 60, "gates.init_spread": 2.0})
    examples = load_task(config.task, tokenizer, frozen.model.config).splits["test"]
    population = Population.new(members(config), frozen.shapes)
    masks = discretise(dict(population.members[0].log_alpha), frozen.shapes, {"total": 900})
    with Streams(frozen, INTERCHANGE) as streams:
        first = score(streams, examples, [masks], MicroBatches(30))
        for batch_size, padding in ((1, "right"), (7, "left"), (30, "left")):
            other = score(streams, examples, [masks], MicroBatches(batch_size, padding=padding))
            for name in first._fields:
                torch.testing.assert_close(getattr(first, name), getattr(other, name), atol=1e-5, rtol=1e-5, msg=name)
    assert first.kl.mean() > 0.01


def test_tensorboard_receives_what_metrics_hold(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path / "run", tracking__trackers=["tensorboard"])
    events = EventAccumulator(str(folder.path / "tracking/bigcircuit")).Reload()
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    expected = {row["step"]: row["kl"] for row in rows if "kl" in row}
    found = {event.step: event.value for event in events.Scalars("kl")}
    assert found == pytest.approx(expected, rel=1e-5)


def test_tracker_that_is_not_installed(tmp_path):
    if find_spec("trackio"):
        pytest.skip("trackio is installed")
    with pytest.raises(UserError, match="trackio is not installed; `pip install trackio` or remove it"):
        Trackers(load(None, {"tracking.trackers": ["trackio"]}), RunDir(tmp_path))


def test_plain_lines_without_a_terminal_and_a_bar_on_one():
    plain, bar = io.StringIO(), io.StringIO()
    for stream, terminal in ((plain, False), (bar, True)):
        display = ProgressDisplay(True, console=Console(file=stream, force_terminal=terminal, width=120))
        with display.training(steps=3, done=0):
            for step in (1, 2, 3):
                display.step(step, {"kl": 0.5, "neurons": 12.0})
    lines = plain.getvalue().splitlines()
    assert lines[0].startswith("step 1/3")
    assert re.search(r"step 3/3 .* steps/s .* kl 0\.5 +neurons 12", lines[-1])
    assert "3/3" in bar.getvalue()
    assert "━" in bar.getvalue()


def test_ranks_other_than_the_first_are_silent():
    stream = io.StringIO()
    display = ProgressDisplay(False, console=Console(file=stream, force_terminal=True))
    with display.training(steps=1, done=0):
        display.step(1, {})
    display.say("hello")
    assert stream.getvalue() == ""


def test_closing_table_fits_eighty_columns_and_says_it_in_words(tmp_path):
    summary = json.loads(run(tmp_path / "run").summary.read_text())
    stream = io.StringIO()
    Console(file=stream, width=80).print(summary_table(summary, wide=False))
    shown = stream.getvalue()
    assert "…" not in shown
    for row in ("model", "circuit", "empty"):
        assert row in shown
    assert summary_sentence(summary).startswith("Keeping 200 of 1792 neurons")
