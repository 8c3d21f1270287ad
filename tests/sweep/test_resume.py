"""Whether the folder of a sweep is resumed, replaced or refused."""

import json

import pytest

from bigcircuit.errors import UserError
from bigcircuit.io.files import write_json
from bigcircuit.runtime.console import PlainConsole

pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep.resume import (
    has_begun,
    replaces_other_sweep,
    sweep_json,
    trials_left,
)
from bigcircuit.sweep.run import execute_sweep
from tests.helpers.sweep_actor import short_sweep
from tests.helpers.sweep_dir import write_trial


@pytest.fixture
def folder(tmp_path):
    """The folder of a sweep of three trials, of which one has made an update."""
    write_json(tmp_path / "sweep.json", sweep_json(short_sweep(tmp_path)))
    write_trial(tmp_path, 0, {"train.seed": 0}, status="running", step=3, updates=3)
    return tmp_path


def test_the_same_sweep_is_resumed_also_with_other_workers(folder):
    for changed in ({}, {"workers": 2, "slots": 8, "cpus": 1, "gpus": 0.5, "ranks": 2}):
        assert not replaces_other_sweep(folder, short_sweep(folder, **changed))
    assert not replaces_other_sweep(folder / "new", short_sweep(folder / "new"))


@pytest.mark.parametrize(
    ("base", "search", "difference"),
    [
        ({"train.lr": 0.5}, {}, "train.lr "),
        ({}, {"scheduler": "asha"}, "sweep.scheduler 'none', not 'asha'"),
        ({}, {"space": {"train.seed": [0, 1]}}, "sweep.space."),
    ],
)
def test_another_sweep_is_refused_by_its_first_difference_once_it_has_begun(folder, base, search, difference):
    other = short_sweep(folder, base, **search)
    with pytest.raises(UserError) as caught:
        replaces_other_sweep(folder, other)
    assert f"holds a sweep with {difference}" in str(caught.value) and "--fresh" in str(caught.value)
    write_trial(folder, 0, {"train.seed": 0}, status="failed", error="why")
    assert replaces_other_sweep(folder, other), "it has made no update"


def test_another_sweep_that_used_the_folder_meanwhile_is_not_taken_up(tmp_path, monkeypatch):
    """Settings are compared before the pairs are read; another process may start a sweep there until the folder is locked."""

    def meanwhile(_):
        write_json(tmp_path / "sweep.json", sweep_json(short_sweep(tmp_path, {"train.lr": 0.5})))
        write_trial(tmp_path, 0, {"train.seed": 0}, status="running", step=3, updates=3)
        return ()

    monkeypatch.setattr("bigcircuit.sweep.run.check", meanwhile)
    monkeypatch.setattr("bigcircuit.sweep.run.cluster", pytest.fail)
    with pytest.raises(UserError, match=r"holds a sweep with train\.lr 0\.5, not 0\.1; name another output"):
        execute_sweep(short_sweep(tmp_path), None, PlainConsole())
    assert json.loads((tmp_path / "sweep.json").read_text())["config"]["train"]["lr"] == 0.5


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files and no sweep"):
        replaces_other_sweep(tmp_path, short_sweep(tmp_path))


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"config": 1, "sweep": {}}'])
def test_a_damaged_description_is_named(folder, content):
    (folder / "sweep.json").write_text(content)
    with pytest.raises(UserError, match="sweep.json: not a sweep's"):
        replaces_other_sweep(folder, short_sweep(folder))


def test_settings_that_are_new_since_count_as_their_defaults(folder):
    written = json.loads((folder / "sweep.json").read_text())
    del written["sweep"]["metric"], written["config"]["train"]["margin"]
    write_json(folder / "sweep.json", written)
    assert not replaces_other_sweep(folder, short_sweep(folder))
    with pytest.raises(UserError, match="sweep.metric 'objective', not 'kl'"):
        replaces_other_sweep(folder, short_sweep(folder, metric="kl"))


def test_trials_that_are_retried_are_left(folder):
    sweep = short_sweep(folder)
    assert has_begun(folder) and trials_left(folder, sweep) == 3
    write_trial(folder, 0, {"train.seed": 0}, status="finished", step=6, updates=6)
    write_trial(folder, 1, {"train.seed": 1}, status="failed", error="why")
    assert trials_left(folder, sweep) == 1
    write_trial(folder, 1, {"train.seed": 1}, status="failed", error="why", lost=True)
    assert trials_left(folder, sweep) == 2
