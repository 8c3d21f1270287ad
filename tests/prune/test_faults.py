"""Faults, in two processes where ranks are concerned: the job ends in time and says why, and nothing is lost or wrong."""

import hashlib
import json
import pickle
import re
import shutil
import signal
from pathlib import Path

import pytest

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.io import checkpoint
from bigcircuit.io.files import tensor_sha256
from tests.helpers import interrupted_runs as faults
from tests.helpers.bad_disks import DAMAGES, NotPermittedError, damages, disk
from tests.helpers.crash_points import crash_everywhere
from tests.helpers.interrupted_runs import Result, once, states_equal, states_of, stop, unexpected


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed, with the checkpoint of every fourth step."""
    return once(tmp_path_factory.mktemp("whole") / "run", Ranks(), train__keep_checkpoints=100)


def same(one: Result, other: Result) -> bool:
    return (one.circuit, one.metrics, one.difference(other)) == (other.circuit, other.metrics, 0)


# A rank dies or hangs.


@pytest.mark.parametrize(("launcher", "rank"), [("deepspeed", 0), ("torchrun", 1)])
def test_a_killed_rank_ends_the_job_and_nothing_is_lost(tmp_path, whole, launcher, rank):
    lost = faults.lose(tmp_path / "run", rank, step=24, pause=0.02, launcher=launcher)
    assert lost.ending.code != 0
    assert lost.ending.seconds < 30
    assert re.fullmatch(
        rf"bigcircuit: rank {rank} on \S+ died; its last line: step \d+/30 .*; the same command goes on from the last checkpoint",
        lost.text,
    ), lost.ending.text
    assert same(Result.of(once(tmp_path / "run", Ranks())), Result.of(whole))


SILENCE = 4.0
"""Seconds; 15 outside of these tests."""


def test_a_rank_that_is_held_ends_the_job(tmp_path):
    slower = ("slow", {"seconds": 0.1, "silence": SILENCE})
    lost = faults.lose(tmp_path / "run", rank=0, step=8, number=signal.SIGSTOP, fault=slower)
    assert lost.ending.code != 0
    assert lost.ending.seconds < SILENCE + 10
    assert re.search(r"rank 0 on \S+ has not been heard of for 4 s; its last line: step \d+/30 ", lost.text)


def test_a_rank_that_sleeps_for_ever_ends_the_job(tmp_path):
    with faults.Job(tmp_path / "run", fault=("sleep", {"rank": 1, "step": 6, "silence": SILENCE})) as job:
        job.wait_for(6)
        job.signal(0, job.rank(1))  # starts the clock
        lost = job.interruption()
    assert lost.ending.code != 0
    assert lost.ending.seconds < SILENCE + 10
    assert re.search(r"rank 1 on \S+ hangs: it has done nothing for 4 s; its last line: step 6/30 ", lost.text)
    assert lost.step == 6


# Asked to stop.


@pytest.mark.parametrize(("launcher", "everybody", "times"), [("torchrun", False, 1), ("deepspeed", True, 2)])
def test_sigterm_saves_the_state_within_five_seconds(tmp_path, whole, launcher, everybody, times):
    stopped = faults.terminate(tmp_path / "run", 9, everybody, times, launcher=launcher)
    assert stopped.ending.code != 0
    assert stopped.ending.seconds < 10, "2 to 3 s on an idle machine, see benchmarks/reliability.md"
    assert stopped.text == "bigcircuit: stopped; the same command goes on from here"
    assert f"stopped at step {stopped.step}, which is saved" in stopped.ending.text
    assert stopped.saved == stopped.step
    assert same(Result.of(once(tmp_path / "run", Ranks())), Result.of(whole))


# A crash at every operation.


def test_a_crash_anywhere_in_a_save_leaves_one_state_or_the_other(tmp_path, whole):
    states = states_of(whole / "checkpoints")
    before, after = states["step-000028"], states["step-000030"]

    def prepare():
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        for name in ("step-000024", "step-000028"):
            shutil.copytree(whole / "checkpoints" / name, tmp_path / "c" / name)

    seen = []
    for operation in crash_everywhere(lambda: checkpoint.save(tmp_path / "c", 30, after, 2), prepare):
        found = checkpoint.newest(tmp_path / "c", unexpected)
        assert states_equal(found, after if "rename" in seen else before), (len(seen), operation)
        seen.append(operation)
    assert seen[:10] == ["mkdir", *("open", "write", "sync") * 2, "sync", "rename", "sync"]
    assert seen[10:] and set(seen[10:]) <= {"remove", "rmdir"}


def test_a_crash_while_a_damaged_checkpoint_is_replaced_leaves_the_one_before(tmp_path, whole):
    states = states_of(whole / "checkpoints")

    def prepare():
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(whole / "checkpoints/step-000024", tmp_path / "c/step-000024")
        shutil.copytree(whole / "checkpoints/step-000028", tmp_path / "c/step-000028")
        (tmp_path / "c/step-000028/state.json").unlink()

    for _ in crash_everywhere(lambda: checkpoint.save(tmp_path / "c", 28, states["step-000028"], 2), prepare):
        found = checkpoint.newest(tmp_path / "c", lambda _: None)
        assert any(states_equal(found, states[name]) for name in ("step-000024", "step-000028"))


def test_a_crash_anywhere_in_a_run_does_no_harm(tmp_path):
    short = {"train__steps": 2, "train__save_every": 1}
    result, run = Result.of(once(tmp_path / "whole", Ranks(), **short)), tmp_path / "run"
    seen = []
    for operation in crash_everywhere(
        lambda: once(run, Ranks(), **short), lambda: shutil.rmtree(run, ignore_errors=True), first=4, every=15
    ):
        seen.append(operation)
        assert same(Result.of(once(run, Ranks(), **short)), result)
        assert not list(run.rglob("*.tmp"))
    assert len(seen) > 3 and seen[0] == "write", "the first that is tried is that of config.json"


# Damaged checkpoints.


def test_every_damage_is_found(tmp_path, whole):
    folder = tmp_path / "three"
    for name in ("step-000020", "step-000024", "step-000028"):
        shutil.copytree(whole / "checkpoints" / name, folder / name)
    seen = list(damages(folder, tmp_path, 20 * len(DAMAGES), seed=0))
    assert [damage.kind for damage in seen if not damage.found] == []
    assert {damage.kind for damage in seen} == set(DAMAGES)


def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(tmp_path, whole, capsys):
    stop(tmp_path / "run", Ranks(), 10)
    file = tmp_path / "run/checkpoints/step-000010/state.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    assert same(Result.of(once(tmp_path / "run", Ranks())), Result.of(whole))
    said = capsys.readouterr().out
    assert "step-000010: checkpoint is damaged (state.safetensors has changed); falling back to step-000008" in said
    assert "at step 8" in said


def test_a_damaged_checkpoint_does_not_push_a_whole_one_out(tmp_path, whole):
    """The run went on from an older one, and keeps one only: what it writes now is not the oldest."""
    shutil.copytree(whole / "checkpoints", tmp_path / "c")
    (tmp_path / "c/step-000030/state.json").write_bytes(b"{}")
    state = states_of(whole / "checkpoints")["step-000012"]
    shutil.rmtree(tmp_path / "c/step-000012")
    checkpoint.save(tmp_path / "c", 12, state, keep=1)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-000012"]


def test_all_checkpoints_damaged_is_said_and_the_run_starts_over(tmp_path, whole, capsys):
    stop(tmp_path / "run", Ranks(), 6)
    for path in (tmp_path / "run/checkpoints").iterdir():
        (path / "state.json").unlink()
    assert same(Result.of(once(tmp_path / "run", Ranks())), Result.of(whole))
    assert "no other is left, starting from step 0" in capsys.readouterr().out


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_pickle_is_read(tmp_path, whole):
    """Not even one whose hashes are right."""
    path = tmp_path / "c/step-000030"
    shutil.copytree(whole / "checkpoints/step-000030", path)
    content = pickle.dumps(Trap(tmp_path / "sprung"))
    manifest = json.loads((path / "state.json").read_text())
    del manifest["sha256"]
    manifest["file"] = hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps({**manifest, "sha256": digest}, indent=2) + "\n")
    (path / "state.safetensors").write_bytes(content)
    said = []
    assert checkpoint.newest(tmp_path / "c", said.append) is None
    assert len(said) == 1 and "has changed" not in said[0]
    assert not (tmp_path / "sprung").exists()
    for file in Path(checkpoint.__file__).parent.rglob("*.py"):
        assert not re.search(r"\bimport pickle|\btorch\.load\(", file.read_text()), file


# Disks that refuse.


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
def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path, whole, small, step, log_every, save_every, file):
    # A few more lines fit into the last block of metrics.jsonl, so a checkpoint must not come first.
    every = {"train__log_every": log_every, "train__save_every": save_every}
    options = {"launcher": "none", "inside": small.inside, "log": tmp_path / "log", **every}
    with faults.Job(small.path / "run", fault=full(small, step), **options) as job:
        ending = job.end()
    assert ending.code == 2, ending.text
    assert ending.text.count("bigcircuit: ") == 1 and "Traceback" not in ending.text
    assert re.search(
        rf"{file}: cannot be written \(No space left on device\); free space or choose another", ending.text
    )
    assert not list(small.seen.rglob("*.tmp")), "what could not be written does not fill the disk"
    states, name = states_of(whole / "checkpoints"), f"step-{step // 4 * 4:06d}"
    expected = states[name] if step > save_every else None
    assert states_equal(checkpoint.newest(small.seen / "run/checkpoints", unexpected), expected)
    shutil.copytree(small.seen / "run", tmp_path / "run")
    resumed = Result.of(once(tmp_path / "run", Ranks(), **every))
    assert resumed.circuit == Result.of(whole).circuit


def test_a_read_only_folder_is_one_line_and_changes_nothing(tmp_path, small):
    stop(tmp_path / "run", Ranks(), 10)
    shutil.copytree(tmp_path / "run", small.seen / "run")
    small.make_read_only()
    options = {"launcher": "none", "inside": small.inside, "log": tmp_path / "log"}
    with faults.Job(small.path / "run", **options) as job:
        ending = job.end()
    assert ending.code == 2, ending.text
    assert ending.text.count("bigcircuit: ") == 1 and "Traceback" not in ending.text
    assert "metrics.jsonl: cannot be written (Read-only file system); " in ending.text
    states = states_of(tmp_path / "run/checkpoints")
    assert states_equal(checkpoint.newest(small.seen / "run/checkpoints", unexpected), states["step-000010"])


def full(small, step):
    return "full_disk", {"step": step, "folder": str(small.path)}


# Numbers.


def test_not_a_number_on_one_rank_stops_all_before_the_same_update(tmp_path, whole):
    fault = ("not_a_number", {"rank": 1, "step": 12, "folder": str(tmp_path)})
    with faults.Job(tmp_path / "run", fault=fault) as job:
        found = job.interruption()
    assert found.ending.code != 0
    assert found.text.startswith(
        "bigcircuit: member 0, step 13: the loss or its gradient is not finite; the gates were not"
    )
    one, other = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one["step"] == found.saved == 12
    assert one["gates"] == gates_sha256(states_of(whole / "checkpoints")["step-000012"])
    assert same(Result.of(once(tmp_path / "run", Ranks())), Result.of(whole))


def gates_sha256(state):
    return {
        name.removeprefix("0.log_alpha."): tensor_sha256(values)
        for name, values in state.tensors.items()
        if ".log_alpha." in name
    }


def test_memory_does_not_grow(tmp_path):
    fault = ("memory", {"steps": [50, 200], "folder": str(tmp_path)})
    few = {"train__steps": 200, "train__batch_size": 2, "train__micro_batch_size": 1, "train__save_every": 20}
    with faults.Job(tmp_path / "run", launcher="none", fault=fault, **few) as job:
        ending = job.end()
    assert ending.code == 0, ending.text
    early, late = json.loads((tmp_path / "rank-0.json").read_text()).values()
    assert late - early < 3, f"resident set of {early:.1f} MiB after 50 steps, {late:.1f} MiB after 200"
