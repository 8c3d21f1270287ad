"""What a dry run counts: the trials, and those that are left."""

import asyncio
import io

import pytest

from bigcircuit.errors import UserError
from bigcircuit.io.files import write_json
from bigcircuit.results.trial_record import TrialRecord
from bigcircuit.runtime.console import PlainConsole

pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep.cluster import WorkerResources
from bigcircuit.sweep.dry_run import configs_left, expected_records, measure_time
from bigcircuit.sweep.resume import sweep_json
from tests.helpers.sweep_actor import InProcessWorker, short_sweep
from tests.helpers.sweep_dir import write_trial
from tests.helpers.sweep_processes import run_sweep_command, write_sweep_config


def test_trials_are_the_planned_ones_and_those_of_the_folder(tmp_path):
    sweep = short_sweep(tmp_path)
    assert [record.settings for record in expected_records(tmp_path, sweep)] == [{"train.seed": n} for n in range(3)]
    write_json(tmp_path / "sweep.json", sweep_json(sweep))
    write_trial(tmp_path, 1, {"train.seed": 1}, status="finished", step=6, updates=6)
    assert [record.status for record in expected_records(tmp_path, sweep)] == ["waiting", "finished", "waiting"]
    other = short_sweep(tmp_path, {"train.lr": 0.5})
    with pytest.raises(UserError, match="holds a sweep with train.lr"):
        expected_records(tmp_path, other)


def test_trials_of_optuna_are_drawn_at_random(tmp_path):
    sweep = short_sweep(tmp_path, space={"train.lr": {"uniform": [0.1, 0.2]}}, search="optuna", trials=4)
    assert len({record.settings["train.lr"] for record in expected_records(tmp_path, sweep)}) == 4


def test_trials_that_have_ended_or_cannot_run_are_not_left(tmp_path):
    records = [TrialRecord(number, {}, {"train.lr": lr}) for number, lr in enumerate((0.1, -1, 0.2))]
    records[2].status = "stopped"
    assert [config.train.lr for config in configs_left(records, short_sweep(tmp_path))] == [0.1]
    assert [record.status for record in records] == ["waiting", "failed", "stopped"]
    assert "train.lr" in records[1].error


def test_time_is_measured_with_the_trials_that_run(tmp_path, monkeypatch):
    monkeypatch.setattr("bigcircuit.sweep.dry_run.WorkerGroup", InProcessWorker)
    sweep, file = short_sweep(tmp_path, space={"target.total": [200, 10**6]}), io.StringIO()
    configs = [sweep.trial_config({"target.total": size}, number) for number, size in enumerate((200, 10**6))]
    console, resources = PlainConsole(file=file, width=200), WorkerResources(workers=1, cpus=1, gpus=0)
    estimate = asyncio.run(measure_time(sweep, configs, resources, console))
    assert "trial 001 would fail: target.total is 1000000" in file.getvalue()
    assert estimate.members == 1 and estimate.start > estimate.update > 0
    with pytest.raises(UserError, match="none of these trials can run"):
        asyncio.run(measure_time(sweep, configs[1:], resources, console))


def test_a_dry_run_says_what_would_happen_and_writes_nothing(tmp_path):
    config = write_sweep_config(tmp_path)
    said = run_sweep_command(config, tmp_path / "s", "--dry-run")
    assert "4 trials (grid, scheduler none) in 4 slots: 2 worker(s) with 2 slots" in said
    assert "memory: about 0." in said and "GiB a rank" in said
    assert "time: about" in said and "1 round(s) of 40 updates" in said
    assert not (tmp_path / "s").exists()
