"""Resuming is exact: whatever ended a run, the same command goes on as if nothing had been."""

import json
import shutil
from pathlib import Path

import pytest

from bigcircuit import prune
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.io import checkpoint
from tests.helpers import interrupted_runs as faults
from tests.helpers.interrupted_runs import Result, once, stop
from tests.helpers.short_runs import run

EMBEDDED = Path(prune.__file__).parent / "embedded/model"


def exact(seen: list[faults.Stop]) -> bool:
    return all(stop.difference == 0 and stop.same_circuit and stop.same_metrics for stop in seen)


def test_members_of_different_lengths(tmp_path):
    overrides = {
        "gates__warm_start": "integrated_gradients",
        "gates__parametrisation": "straight_through",
        "population__members": [{"train.steps": 11}, {"target.total": 99, "train.seed": 5, "train.lr": 0.05}],
    }
    # At 12 a checkpoint is due, and the first member has ended.
    seen = faults.stop_and_resume(Ranks(), tmp_path, [12], **overrides)
    assert exact(seen), seen


def test_a_run_stopped_at_every_step_in_turn_ends_as_if_it_had_not_been(tmp_path):
    # At 3 and 6 a validation is due, at 4 and 8 a checkpoint.
    steps = {"train__steps": 9, "train__validate_every": 3}
    whole = Result.of(once(tmp_path / "whole", Ranks(), **steps))
    for step in range(1, 9):
        stop(tmp_path / "cut", Ranks(), step, **steps)
    found = Result.of(once(tmp_path / "cut", Ranks(), **steps))
    assert (found.circuit, found.metrics, found.difference(whole)) == (whole.circuit, whole.metrics, 0)


def test_two_ranks_and_from_two_to_one_and_back(tmp_path):
    arguments = {"folder": str(tmp_path), "steps": [10], "mixed": True}
    with faults.Job(tmp_path / "unused", fault=("stops", arguments)) as job:
        ending = job.end()
    assert (tmp_path / "stops.json").exists(), ending.text
    seen = json.loads((tmp_path / "stops.json").read_text())
    assert exact([faults.Stop(*one) for one in [*seen["stops"], seen["mixed"]]]), seen
    alone = Result.of(once(tmp_path / "alone", Ranks()))
    assert alone.difference(Result.of(tmp_path / "whole")) == 0
    assert alone.circuit == Result.of(tmp_path / "whole").circuit


class Killed(Exception):
    pass


def kill_at(monkeypatch, step):
    """Make the run die before it makes the update after `step`."""

    def die(state, *arguments):
        if state.step == step:
            raise Killed
        return step.update(state, *arguments)

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
    whole = Result.of(once(tmp_path / "whole", Ranks()))
    stop(tmp_path / "cut", Ranks(), 10)
    with monkeypatch.context() as patch:
        kill_at(patch, 11)
        with pytest.raises(Killed):
            once(tmp_path / "cut", Ranks())
    assert Result.of(once(tmp_path / "cut", Ranks())).metrics == whole.metrics


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run on files of its own, stopped; the folder, and the settings to go on with."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(EMBEDDED, folder / "model")
    rows = [
        {"clean": f"So {a} likes a {b}", "corrupted": f"So {c} likes a {b}", "answers": " she", "wrong_answers": " he"}
        for a, c in (("Mary", "John"), ("Anna", "James"), ("Emma", "Tom"))
        for b in ("book", "cake", "ball")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = {
        "model__path": str(folder / "model"), "task__name": "pairs", "task__path": str(folder / "pairs.jsonl"),
        "train__steps": 4, "gates__parametrisation": "hard_concrete",
    }  # fmt: skip
    stop(folder / "run", Ranks(), 2, **overrides)
    return folder, overrides


def last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("file", "change", "field"),
    [
        ("model/model.safetensors", last_byte, "model weights"),
        (
            "model/config.json",
            lambda content: content.replace(b'"rms_norm_eps": ', b'"rms_norm_eps": 1'),
            "model config",
        ),
        ("model/tokenizer.json", lambda content: content.replace(b'"version": ', b'"version":  '), "model tokenizer"),
        ("pairs.jsonl", lambda content: content.replace(b'" he"', b'" it"'), "pairs"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_other_files_under_the_same_names_are_refused_by_name(stopped, file, change, field):
    folder, overrides = stopped
    before = (folder / file).read_bytes()
    assert change(before) != before
    (folder / file).write_bytes(change(before))
    try:
        with pytest.raises(
            UserError, match=rf"made with another {field} \(sha256 \w{{12}}, now \w{{12}}\); put the files"
        ):
            once(folder / "run", Ranks(), **overrides)
    finally:
        (folder / file).write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value"),
    [("train__lr", 0.2), ("task__seed", 3), ("model__dtype", "bfloat16"), ("gates__granularities", ["head"])],
)
def test_another_setting_is_refused_by_name(stopped, key, value):
    folder, overrides = stopped
    with pytest.raises(UserError, match=rf"holds a run with {key.replace('__', '.')} .*, not .*; name another output"):
        once(folder / "run", Ranks(), **{**overrides, key: value})


def test_a_stopped_run_goes_on_with_other_settings_of_memory(stopped, tmp_path):
    folder, overrides = stopped
    shutil.copytree(folder / "run", tmp_path / "run")
    whole = Circuit.load(once(folder / "whole", Ranks(), **overrides) / "circuit.safetensors")
    resumed = once(
        tmp_path / "run", Ranks(), **{**overrides, "train__micro_batch_size": 2, "train__checkpointing": True}
    )
    for name, values in Circuit.load(resumed / "circuit.safetensors").log_alpha.items():
        assert (values - whole.log_alpha[name]).abs().max() <= 1e-6


def test_a_checkpoint_is_small_and_holds_everything(stopped):
    folder, _ = stopped
    (path,) = (folder / "run/checkpoints").iterdir()
    assert {file.name for file in path.iterdir()} == {"state.safetensors", "state.json"}
    state = checkpoint.newest(path.parent, pytest.fail)
    kinds = {name.split(".")[1] for name in state.tensors}
    assert kinds == {"log_alpha", "exp_avg", "exp_avg_sq"}
    assert set(state.base) == {"model config", "model weights", "model tokenizer", "model adapter", "pairs"}
    manifest = json.loads((path / "state.json").read_text())
    assert manifest["tensors"].keys() == state.tensors.keys()
    assert all(len(digest) == 64 for digest in [*manifest["tensors"].values(), manifest["file"], manifest["sha256"]])
