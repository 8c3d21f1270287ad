"""Run folders: which runs may be resumed in them, and who may write to them."""

import pytest

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.io.run_dir import RunDir
from tests.helpers.interrupted_runs import run_or_resume
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


def test_two_processes_do_not_share_a_folder(tmp_path):
    folder = RunDir(tmp_path / "r")
    with folder.locked(), pytest.raises(UserError, match="another process is running in this folder; wait for it"):
        run(tmp_path / "r")
    assert run(tmp_path / "r", train__steps=2).finished


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be made .*; name another output"):
        run(tmp_path / "file/run")
