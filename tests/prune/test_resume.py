"""Resuming is exact: whatever ended a run, the same command goes on as if nothing had been."""

import json
import shutil

import pytest

from bigcircuit import prune
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.train import step as train_step
from tests.helpers import interrupted_runs
from tests.helpers.interrupted_runs import Result, run_or_resume, stop
from tests.helpers.short_runs import run


def exact(seen: list[interrupted_runs.Stop]) -> bool:
    return all(stop.difference == 0 and stop.same_circuit and stop.same_metrics for stop in seen)


def test_members_of_different_lengths(tmp_path):
    overrides = {
        "gates__warm_start": "integrated_gradients",
        "gates__parametrisation": "straight_through",
        "population__members": [{"train.steps": 11}, {"target.total": 99, "train.seed": 5, "train.lr": 0.05}],
    }
    # At 12 a checkpoint is due, and the first member has ended.
    seen = interrupted_runs.stop_and_resume(Ranks(), tmp_path, [12], **overrides)
    assert exact(seen), seen


def test_a_run_stopped_at_every_step_in_turn_ends_as_if_it_had_not_been(tmp_path):
    # At 3 and 6 a validation is due, at 4 and 8 a checkpoint.
    steps = {"train__steps": 9, "train__validate_every": 3}
    whole = Result.of(run_or_resume(tmp_path / "whole", Ranks(), **steps))
    for step in range(1, 9):
        stop(tmp_path / "cut", Ranks(), step, **steps)
    found = Result.of(run_or_resume(tmp_path / "cut", Ranks(), **steps))
    assert (found.circuit, found.metrics, found.difference(whole)) == (whole.circuit, whole.metrics, 0)


def test_two_ranks_and_from_two_to_one_and_back(tmp_path):
    arguments = {"folder": str(tmp_path), "steps": [10], "mixed": True}
    with interrupted_runs.Job(tmp_path / "unused", fault=("stops", arguments)) as job:
        ending = job.end()
    assert (tmp_path / "stops.json").exists(), ending.text
    seen = json.loads((tmp_path / "stops.json").read_text())
    assert exact([interrupted_runs.Stop(*one) for one in [*seen["stops"], seen["mixed"]]]), seen
    alone = Result.of(run_or_resume(tmp_path / "alone", Ranks()))
    assert alone.difference(Result.of(tmp_path / "whole")) == 0
    assert alone.circuit == Result.of(tmp_path / "whole").circuit


class Killed(Exception):
    pass


def kill_at(monkeypatch, step):
    """Make the run die before it makes the update after `step`."""

    def die(state, *arguments):
        if state.step == step:
            raise Killed
        return train_step.update(state, *arguments)

    monkeypatch.setattr(prune, "update", die)


@pytest.mark.parametrize("step", [1, 7])
def test_killing_changes_no_bit(tmp_path, monkeypatch, step):
    overrides = {"train__save_every": 1, "train__keep_checkpoints": 3}
    reference = run(tmp_path / "whole", **overrides)
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            run(tmp_path / "cut", **overrides)
    resumed = run(tmp_path / "cut", **overrides)
    circuit = (resumed.path / "circuit.safetensors").read_bytes()
    assert circuit == (reference.path / "circuit.safetensors").read_bytes()
    assert resumed.metrics.read_text() == reference.metrics.read_text()
    assert [path.name for path in sorted(resumed.checkpoints.iterdir())] == [f"step-0000{n}" for n in (10, 11, 12)]


def test_no_line_of_the_metrics_is_written_twice(tmp_path, monkeypatch):
    """Stopped where a validation is due, gone on with it, then killed before the next checkpoint."""
    whole = Result.of(run_or_resume(tmp_path / "whole", Ranks()))
    stop(tmp_path / "cut", Ranks(), 10)
    with monkeypatch.context() as patch:
        kill_at(patch, 11)
        with pytest.raises(Killed):
            run_or_resume(tmp_path / "cut", Ranks())
    assert Result.of(run_or_resume(tmp_path / "cut", Ranks())).metrics == whole.metrics


def test_a_stopped_run_goes_on_with_other_settings_of_memory(stopped_run, tmp_path):
    folder, overrides = stopped_run
    shutil.copytree(folder / "run", tmp_path / "run")
    whole = Circuit.load(run_or_resume(folder / "whole", Ranks(), **overrides) / "circuit.safetensors")
    resumed = run_or_resume(
        tmp_path / "run", Ranks(), **{**overrides, "train__micro_batch_size": 2, "train__checkpointing": True}
    )
    for name, values in Circuit.load(resumed / "circuit.safetensors").log_alpha.items():
        assert (values - whole.log_alpha[name]).abs().max() <= 1e-6
