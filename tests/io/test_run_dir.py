"""Run folders: which runs may be resumed in them, and who may write to them."""

import hashlib
import json
import shutil

import pytest

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.io.files import temporary_path
from bigcircuit.io.run_dir import RunDir, settings_sha256, write_config
from bigcircuit.prune import prune
from tests.helpers.interrupted_runs import SETTINGS, run_or_resume
from tests.helpers.short_runs import run


@pytest.mark.parametrize(
    ("key", "value"),
    [("train__lr", 0.2), ("task__seed", 3), ("model__dtype", "bfloat16"), ("gates__granularities", ["head"])],
)
def test_another_setting_is_refused_by_name(stopped_run, key, value):
    folder, overrides = stopped_run
    with pytest.raises(UserError, match=rf"holds a run with {key.replace('__', '.')} .*, not .*; name another output"):
        run_or_resume(folder / "run", Ranks(), **{**overrides, key: value})


def test_another_config_in_the_same_folder_is_refused_by_field(finished_run):
    with pytest.raises(UserError, match=r"train\.lr 0\.1, not 0\.2; name another output or use --fresh"):
        run(finished_run.path, train__lr=0.2)


def test_fresh_takes_a_new_name(finished_run):
    from bigcircuit.io.run_dir import choose_run_dir

    assert choose_run_dir(load(None, {"output": str(finished_run.path)}), fresh=True).path.name == "a-2"


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files and no run"):
        run(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_leftovers_are_removed_and_hidden_folders_of_others_are_not(tmp_path):
    mine, left = tmp_path / ".notes.2024.tmp", temporary_path(tmp_path / "step-000002")
    for folder in (mine, left):
        folder.mkdir()
        (folder / "file").write_text("")
    with RunDir(tmp_path).locked():
        assert mine.exists() and not left.exists()
    with pytest.raises(UserError, match="the folder holds other files and no run"):
        run(tmp_path)
    assert (mine / "file").exists()


def test_two_processes_do_not_share_a_folder(tmp_path):
    folder = RunDir(tmp_path / "r")
    with folder.locked(), pytest.raises(UserError, match="another process is running in this folder; wait for it"):
        run(tmp_path / "r")
    assert run(tmp_path / "r", train__steps=2).finished


def test_another_run_that_used_the_folder_meanwhile_is_not_taken_up(tmp_path, monkeypatch):
    """Settings are compared before pairs are read; another process may start a run there until the folder is locked."""
    here = tmp_path / "run"
    monkeypatch.setattr("bigcircuit.prune.check_fits", lambda *_: meanwhile())

    def meanwhile(**settings):
        monkeypatch.setattr("bigcircuit.prune.check_fits", lambda *_: None)
        run(here, train__steps=2, **settings)

    with pytest.raises(UserError, match=r"run: another process has finished this run meanwhile; nothing is left to do"):
        run(here, train__steps=2)
    shutil.rmtree(here)
    monkeypatch.setattr("bigcircuit.prune.check_fits", lambda *_: meanwhile(target__total=90))
    with pytest.raises(UserError, match=r"run: holds a run with target\.total 90, not 200; name another output"):
        run(here, train__steps=2)
    assert json.loads((here / "summary.json").read_text())["members"][0]["kept"]["total"] == 90


def test_a_checkpoint_of_other_settings_is_refused(stopped_run, tmp_path):
    shutil.copytree(stopped_run.folder / "run/checkpoints", tmp_path / "run/checkpoints")
    config = {**SETTINGS, **{key.replace("__", "."): value for key, value in stopped_run.overrides.items()}}
    config = load(None, {**config, "target.total": 150, "output": str(tmp_path / "run")})
    write_config(RunDir(tmp_path / "run"), config, [])
    with pytest.raises(UserError, match=r"its checkpoint was made with other settings \(sha256 \w{12}, now \w{12}\)"):
        prune(config, Ranks())


def test_the_hash_of_settings_is_of_what_a_result_depends_on():
    plain, changed = load(None), {"train.lr": 0.2}
    assert settings_sha256(plain) == settings_sha256(load(None, {"output": "other", "train.micro_batch_size": 1}))
    assert settings_sha256(plain) != settings_sha256(load(None, changed))
    known = hashlib.sha256(json.dumps(changed).encode()).hexdigest()
    assert settings_sha256(load(None, changed)) == known, "settings at their defaults do not count"


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be made .*; name another output"):
        run(tmp_path / "file/run")


def test_a_run_from_before_a_setting_goes_on_with_what_was_done_then(stopped_run, tmp_path):
    """Without `train.store` the corrupted prompts were run in every update."""
    folder, overrides = stopped_run
    shutil.copytree(folder, tmp_path / "old")
    path = tmp_path / "old/run/config.json"
    content = json.loads(path.read_text())
    del content["config"]["train"]["store"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"holds a run with train\.store False, not True; name another output"):
        run_or_resume(tmp_path / "old/run", Ranks(), **overrides)
