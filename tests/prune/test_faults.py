"""Faults in whole runs: crashes, damaged checkpoints, disks that refuse, losses that are no number; nothing is lost or wrong."""

import json
import re
import shutil
import sys

import pytest

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.io import checkpoint
from bigcircuit.io.files import tensor_sha256
from bigcircuit.model.load import EMBEDDED
from tests.helpers import interrupted_runs
from tests.helpers.bad_disks import NotPermittedError, disk
from tests.helpers.crash_points import crash_everywhere
from tests.helpers.interrupted_runs import Result, run_or_resume, states_equal, states_of, stop, unexpected


def test_a_crash_anywhere_in_a_run_does_no_harm(tmp_path):
    short = {"train__steps": 2, "train__save_every": 1}
    result, run = Result.of(run_or_resume(tmp_path / "whole", Ranks(), **short)), tmp_path / "run"
    seen = []
    for operation in crash_everywhere(
        lambda: run_or_resume(run, Ranks(), **short), lambda: shutil.rmtree(run, ignore_errors=True), first=4, every=15
    ):
        seen.append(operation)
        assert Result.of(run_or_resume(run, Ranks(), **short)).equals(result)
        assert not list(run.rglob("*.tmp"))
    assert len(seen) > 3 and seen[0] == "write", "the first that is tried is that of config.json"


def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(tmp_path, undisturbed, capsys):
    stop(tmp_path / "run", Ranks(), 10)
    file = tmp_path / "run/checkpoints/step-000010/state.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    assert Result.of(run_or_resume(tmp_path / "run", Ranks())).equals(Result.of(undisturbed))
    said = capsys.readouterr().out
    assert "step-000010: checkpoint is damaged (state.safetensors has changed); falling back to step-000008" in said
    assert "at step 8" in said


def test_all_checkpoints_damaged_is_said_and_the_run_starts_over(tmp_path, undisturbed, capsys):
    stop(tmp_path / "run", Ranks(), 6)
    for path in (tmp_path / "run/checkpoints").iterdir():
        (path / "state.json").unlink()
    assert Result.of(run_or_resume(tmp_path / "run", Ranks())).equals(Result.of(undisturbed))
    assert "no other is left, starting from step 0" in capsys.readouterr().out


@pytest.fixture
def small(tmp_path):
    try:
        with disk(tmp_path / "disk", "3m") as mounted:
            yield mounted
    except NotPermittedError as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize(
    ("step", "log_every", "save_every", "file"), [(2, 1, 30, "metrics.jsonl"), (10, 100, 4, "step-000012")]
)
def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path, undisturbed, small, step, log_every, save_every, file):
    # A few more lines fit into the last block of metrics.jsonl, so a checkpoint must not come first.
    every = {"train__log_every": log_every, "train__save_every": save_every}
    options = {"launcher": "none", "inside": small.inside, "log": tmp_path / "log", **every}
    with interrupted_runs.Job(small.path / "run", fault=full(small, step), **options) as job:
        ending = job.end()
    assert ending.code == 2, ending.text
    assert ending.text.count("bigcircuit: ") == 1 and "Traceback" not in ending.text
    assert re.search(
        rf"{file}: cannot be written \(No space left on device\); free space or choose another", ending.text
    )
    assert not list(small.seen.rglob("*.tmp")), "what could not be written does not fill the disk"
    states, name = states_of(undisturbed / "checkpoints"), f"step-{step // 4 * 4:06d}"
    expected = states[name] if step > save_every else None
    assert states_equal(checkpoint.load_newest(small.seen / "run/checkpoints", unexpected), expected)
    shutil.copytree(small.seen / "run", tmp_path / "run")
    resumed = Result.of(run_or_resume(tmp_path / "run", Ranks(), **every))
    assert resumed.circuit == Result.of(undisturbed).circuit


def test_a_read_only_folder_is_one_line_and_changes_nothing(tmp_path, small):
    stop(tmp_path / "run", Ranks(), 10)
    shutil.copytree(tmp_path / "run", small.seen / "run")
    small.make_read_only()
    options = {"launcher": "none", "inside": small.inside, "log": tmp_path / "log"}
    with interrupted_runs.Job(small.path / "run", **options) as job:
        ending = job.end()
    assert ending.code == 2, ending.text
    assert ending.text.count("bigcircuit: ") == 1 and "Traceback" not in ending.text
    assert "metrics.jsonl: cannot be written (Read-only file system); " in ending.text
    states = states_of(tmp_path / "run/checkpoints")
    assert states_equal(checkpoint.load_newest(small.seen / "run/checkpoints", unexpected), states["step-000010"])


def full(small, step):
    return "full_disk", {"step": step, "folder": str(small.path)}


def test_not_a_number_on_one_rank_stops_all_before_the_same_update(tmp_path, undisturbed):
    fault = ("not_a_number", {"rank": 1, "step": 12, "folder": str(tmp_path)})
    with interrupted_runs.Job(tmp_path / "run", fault=fault) as job:
        found = job.interruption()
    assert found.ending.code != 0
    assert found.text.startswith(
        "bigcircuit: member 0, step 13: the loss or its gradient is not finite; the gates were not"
    )
    one, other = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one["step"] == found.saved == 12
    assert one["gates"] == gates_sha256(states_of(undisturbed / "checkpoints")["step-000012"])
    assert Result.of(run_or_resume(tmp_path / "run", Ranks())).equals(Result.of(undisturbed))


def test_weights_that_are_written_into_are_in_no_checkpoint(tmp_path, undisturbed, monkeypatch):
    """Mapped weights change with their file. A new file in the place of the old one does not matter."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    weights = folder / "model.safetensors"
    run = sys.modules["bigcircuit.prune"]
    before, update = weights.read_bytes(), run.update

    def write(state, *arguments):
        if state.step == 5:
            with weights.open("r+b") as file:
                file.seek(-4, 2)
                file.write(b"\0\0\0\0")
        return update(state, *arguments)

    monkeypatch.setattr(run, "update", write)
    with pytest.raises(
        UserError, match="weight files were written into while the run computed with them.*put them back"
    ):
        run_or_resume(tmp_path / "run", Ranks(), model__path=str(folder))
    assert list(states_of(tmp_path / "run/checkpoints")) == ["step-000004"]
    monkeypatch.setattr(run, "update", update)
    beside = tmp_path / "beside"
    beside.write_bytes(before)
    beside.replace(weights)
    found = Result.of(run_or_resume(tmp_path / "run", Ranks(), model__path=str(folder)))
    assert states_equal(found.state, Result.of(undisturbed).state)


def gates_sha256(state):
    return {
        name.removeprefix("0.log_alpha."): tensor_sha256(values)
        for name, values in state.tensors.items()
        if ".log_alpha." in name
    }


def test_memory_does_not_grow(tmp_path):
    fault = ("memory", {"steps": [50, 200], "folder": str(tmp_path)})
    few = {"train__steps": 200, "train__batch_size": 2, "train__micro_batch_size": 1, "train__save_every": 20}
    with interrupted_runs.Job(tmp_path / "run", launcher="none", fault=fault, **few) as job:
        ending = job.end()
    assert ending.code == 0, ending.text
    early, late = json.loads((tmp_path / "rank-0.json").read_text()).values()
    assert late - early < 3, f"resident set of {early:.1f} MiB after 50 steps, {late:.1f} MiB after 200"
