"""What the terminal shows of a sweep."""

import dataclasses
import io
from types import SimpleNamespace

import pytest

from bigcircuit.results.trial_record import TrialRecord
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.sweep.messages import SweepStatus

pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep.console import (
    LiveTable,
    failure_lines,
    phase_lines,
    print_trials,
    seconds_left,
    status_line,
)


def record(number, status, step, kl, neurons, updates, **others):
    validation = {"validation.kl": kl, "validation.kept.total": neurons}
    own = {"number": number, "status": status, "step": step, "steps": 40, "updates": updates, "validation": validation}
    return TrialRecord(**{"drawn": {}, "settings": {}, **own, **others})


def test_the_line_says_the_best_the_failed_and_the_time_of_this_start():
    records = [record(0, "finished", 40, 0.0, 1792, 60), record(1, "running", 20, 0.3, 40, 35)]
    status = SweepStatus(
        records=records, total=3, assigned=[[1]], slots=2, rate=2.0, updates=10, steps=40, loss_reasons=[]
    )
    assert seconds_left(status, 5.0) == pytest.approx((120 - 60) * 5 / 10), (
        "updates of earlier starts took other seconds"
    )
    assert (
        status_line(status, 5.0)
        == "1/3 trials  1 running  1/2 slots  2.0 steps/s  best 1792 neurons with validation KL 0  30 s left"
    )
    records[1].validation["validation.kl"] = 0.09
    assert "best 40 neurons with validation KL 0.09" in status_line(status, 5.0)
    only = dataclasses.replace(status, records=[record(1, "running", 20, 2.0, 40, 35)])
    assert "lowest validation KL 2 with 40 neurons" in status_line(only, 5.0)
    assert seconds_left(dataclasses.replace(status, updates=0), 5.0) is None, "no update has been timed"
    records[0].status, records[0].error = "failed", "train.lr: a reason"
    assert failure_lines(records) == ["trial 0 failed: train.lr: a reason"]


def test_what_takes_long_on_a_worker_has_a_line_each():
    status = SweepStatus(
        records=[], total=3, assigned=[], slots=2, rate=0.0, updates=0, steps=40, loss_reasons=[],
        phases={0: "loading weights: 65 s so far", 3: "reference logits: 12/96 passes, 41 s left"},
    )  # fmt: skip
    assert phase_lines(status) == [
        "worker 0: loading weights: 65 s so far",
        "worker 3: reference logits: 12/96 passes, 41 s left",
    ]
    assert phase_lines(dataclasses.replace(status, phases={})) == []


def test_the_table_shows_running_trials_first_and_counts_the_rest():
    records = [record(number, "waiting", 0, 0.5, 100, 0, settings={"train.lr": 0.123456}) for number in range(30)]
    records[7].status, records[7].step = "running", 12
    file = io.StringIO()
    print_trials(PlainConsole(file=file, width=60), records, rows=5)
    lines = file.getvalue().splitlines()
    assert lines[0].split() == ["trial", "status", "train.lr", "step", "validation", "KL", "neurons"]
    assert lines[1].split() == ["7", "running", "0.1235", "12/40", "0.500", "100"]
    assert len(lines) == 1 + 5 + 1 and "25 more" in lines[-1]


def test_of_many_failures_the_first_are_named():
    records = [record(number, "failed", 0, 0.5, 100, 0, error="why") for number in range(10)]
    lines = failure_lines(records)
    assert lines[0] == "trial 0 failed: why" and lines[-1] == "... and 2 more" and len(lines) == 9


def test_kl_on_validation_pairs_and_on_held_out_pairs_have_a_column_each():
    """The two may order trials differently, and the circuit may be another than that of the last validation."""
    records = [record(0, "finished", 40, 0.2, 100, 40), record(1, "finished", 40, 0.3, 90, 40)]
    records.append(record(2, "stopped", 10, 0.9, 80, 10))
    file = io.StringIO()
    print_trials(PlainConsole(file=file, width=80), records, points={0: (101, 0.4), 1: (90, 0.25)})
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert lines[0][-5:] == ["validation", "KL", "held-out", "KL", "neurons"]
    assert [line[-3:] for line in lines[1:3]] == [["0.200", "0.400", "101"], ["0.300", "0.250", "90"]]
    assert lines[3][-2:] == ["0.900", "80"], "a trial that was stopped has no held-out score"


def test_notes_of_the_workers_are_printed_once_even_if_the_sweep_ends_at_once(monkeypatch):
    status = SweepStatus(
        records=[],
        total=1,
        assigned=[],
        slots=1,
        rate=0.0,
        updates=0,
        steps=1,
        loss_reasons=[],
        notes=["58 of 60 pairs"],
    )
    monkeypatch.setattr("bigcircuit.sweep.console.ray.get", lambda *_, **__: status)
    scheduler, file = SimpleNamespace(status=SimpleNamespace(remote=lambda: None)), io.StringIO()
    with LiveTable(PlainConsole(file=file)).watching(scheduler):
        pass
    assert file.getvalue().splitlines() == ["58 of 60 pairs"]
