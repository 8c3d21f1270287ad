"""State of all trials: numbers, reports and their replays, losses, and what is on disk for the next start."""

import json

import pytest
import torch

from bigcircuit.io.checkpoint import SavedState
from bigcircuit.results.trial_record import read_trial_records
from bigcircuit.sweep.messages import Progress
from bigcircuit.sweep.trial_states import TrialStates, last_report, validation_report

pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep.search import planned_settings
from tests.helpers.sweep_actor import short_sweep


def started(folder, base=None, **search):
    """The states of a start of the sweep, with the trials that are known ahead open."""
    sweep = short_sweep(folder, base, **search)
    planned = planned_settings(sweep.settings)
    states = TrialStates(sweep, planned, ["a", "command"])
    states.import_torch()
    for number in range(len(planned)):
        states.open(number)
    return states


def state_at(step):
    data = {"step": step, "validated": step // 3 * 3}
    return SavedState({"x": torch.full((2,), float(step))}, data, {})


def row_at(step, kl=0.5):
    scores = {"validation.objective": kl + 1, "validation.kl": kl, "validation.kept.total": 100}
    return {"step": step, "member": 0, **scores}


def call_to(*trials, step=3, updates=3):
    """The progress of a call that has taken these trials to a step and validated them there."""
    progress = Progress(seconds=0.5, updates=updates)
    for number in trials:
        progress.steps[number], progress.states[number] = step, state_at(step)
        progress.validations[number] = row_at(step)
        progress.rows[number] = [progress.validations[number]]
    return progress


def test_a_trial_is_registered_once_and_recognised_by_its_settings(tmp_path):
    states = started(tmp_path)
    assert states.register("x", {"train.seed": 1}) == 1 and states.number_of("x") == 1 and states.number_of("y") is None
    assert states.register("y", {"train.seed": 1}) == 3, "the trial with these settings has a name"
    assert states.registered == 2
    assert states.register("z", {"train.seed": 9}) == 4 and (tmp_path / "trials/004/trial.json").exists()


def test_settings_that_do_not_fit_fail_their_trial_alone(tmp_path):
    states = started(tmp_path, space={"train.lr": [0.1, -1]})
    assert [states.ended(number) for number in (0, 1)] == [False, True]
    assert states.records[1].error == "train.lr: input should be greater than 0, not -1"
    assert last_report(states.records[1]) == {"number": 1, "error": states.records[1].error}


def test_a_call_is_recorded_and_a_new_start_resumes_there(tmp_path):
    states = started(tmp_path)
    assert states.assign(0).state is None and states.records[0].open_updates == 3
    states.record(call_to(0), [0])
    (record, *_) = read_trial_records(tmp_path)
    assert (record.status, record.step, record.updates, record.open_updates) == ("running", 3, 3, 3)
    assert record.validation == row_at(3)
    again = started(tmp_path)
    assert (again.records[0].status, again.records[0].step) == ("waiting", 3)
    assert again.records[0].updates == 6, "the call that was open may have made three more"
    assert torch.equal(again.assign(0).state.tensors["x"], state_at(3).tensors["x"])


def test_rows_of_an_evicted_trial_are_not_logged(tmp_path):
    states = started(tmp_path)
    for number in (0, 1):
        states.assign(number)
    states.record(call_to(0, 1), [1])
    found = [(tmp_path / f"trials/00{number}/metrics.jsonl").exists() for number in (0, 1)]
    assert found == [False, True]


@pytest.mark.parametrize(("scheduler", "replays"), [("asha", [(3, True), (6, False)]), ("pbt", [])])
def test_reports_are_replayed_after_a_resume_with_what_was_decided(tmp_path, scheduler, replays):
    states = started(tmp_path, {"train.steps": 9}, scheduler=scheduler)
    states.assign(0)
    states.record(call_to(0), [0])
    states.mark_decided(0)
    states.record(call_to(0, step=6), [0])
    reports = started(tmp_path, {"train.steps": 9}, scheduler=scheduler).reports[0]
    assert [(report["step"], report["decided"]) for report in reports] == replays
    assert not any(report["done"] for report in reports)


@pytest.mark.parametrize(("scheduler", "steps"), [("none", [3, 6]), ("pbt", [6])])
def test_the_replay_of_a_stopped_trial_ends_it(tmp_path, scheduler, steps):
    states = started(tmp_path, {"train.steps": 9}, scheduler=scheduler)
    states.assign(0)
    for step in (3, 6):
        states.record(call_to(0, step=step), [0])
    states.stop(0)
    states.mark_waiting(0)
    assert states.records[0].status == "stopped", "it has ended, and waits for no slot"
    reports = started(tmp_path, {"train.steps": 9}, scheduler=scheduler).reports[0]
    assert [report["step"] for report in reports] == steps
    assert [report["done"] for report in reports] == [False] * (len(steps) - 1) + [True]
    assert all(report["decided"] for report in reports)


def test_a_trial_fails_when_it_was_alone_with_three_lost_workers(tmp_path):
    states = started(tmp_path)
    for _ in range(5):
        states.assign(0)
        states.record_loss(0, "why", alone=False)
    for _ in range(2):
        states.assign(0)
        states.record_loss(0, "why", alone=True)
    assert not states.ended(0)
    assert states.records[0].updates == 7 * 3, "each lost call can have made three"
    states.assign(0)
    states.record_loss(0, "why", alone=True)
    assert states.records[0].error == "3 workers were lost with it alone, the last by why"
    assert json.loads((tmp_path / "trials/000/trial.json").read_text())["lost"] is True
    again = started(tmp_path)
    assert (again.records[0].status, again.records[0].error, again.records[0].retry_on_resume) == (
        "waiting",
        None,
        False,
    )


def test_a_state_is_copied_to_another_trial_and_its_metrics_are_cut_there(tmp_path):
    states = started(tmp_path, {"train.steps": 9})
    for number in (0, 1):
        states.assign(number)
    states.record(call_to(0), [0, 1])
    states.record(call_to(1), [0, 1])
    states.record(call_to(1, step=6), [0, 1])
    states.save_checkpoint(0, tmp_path / "copy")
    states.load_checkpoint(1, tmp_path / "copy")
    assert states.records[1].step == 3
    assert torch.equal(states.assign(1).state.tensors["x"], state_at(3).tensors["x"])
    steps = [json.loads(line)["step"] for line in (tmp_path / "trials/001/metrics.jsonl").read_text().splitlines()]
    assert steps == [3]


def test_a_report_is_what_schedulers_compare():
    report = validation_report(4, row_at(6, kl=0.25), done=True)
    expected = {"number": 4, "step": 6, "objective": 1.25, "kl": 0.25, "neurons": 100, "done": True, "decided": False}
    assert report == expected
