"""Files that come with the package, in a checkout and in a wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from bigcircuit.cli import RUNS, answer
from bigcircuit.config.load import load
from bigcircuit.config.shipped import DEEPSPEED, PRESETS, shipped_file, shipped_names
from bigcircuit.errors import UserError
from bigcircuit.model.deepspeed_config import read_deepspeed

ROOT = Path(__file__).parents[2]


def test_names_are_those_of_the_files():
    for folder, suffix in ((PRESETS, ".yaml"), (DEEPSPEED, ".json")):
        assert shipped_names(folder, suffix) == sorted(path.stem for path in (ROOT / folder).glob(f"*{suffix}"))
    assert shipped_file(PRESETS, "../deepspeed/zero3", ".yaml") is None


def test_a_preset_lies_under_a_config_and_overrides(tmp_path):
    (tmp_path / "mine.yaml").write_text("train:\n  batch_size: 3\n")
    paper = load(ROOT / "configs/presets/paper.yaml")
    mixed = load(tmp_path / "mine.yaml", {"train.steps": 7}, preset="paper")
    wanted = paper.train.model_copy(update={"batch_size": 3, "steps": 7})
    assert mixed.train == wanted and mixed.gates == paper.gates and mixed.penalty == paper.penalty
    with pytest.raises(UserError, match="--preset papper: not a preset; use any of .*default, .*paper"):
        load(None, preset="papper")


def test_deepspeed_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_deepspeed("zero3") == read_deepspeed(str(ROOT / "configs/deepspeed/zero3.json"))
    assert read_deepspeed("zero2") is None
    with pytest.raises(UserError, match="deepspeed zero4: no such file; name yours, or one .*: zero0, zero1"):
        read_deepspeed("zero4")


def test_verbs_take_a_preset(capsys):
    assert answer(RUNS["check"], "--preset paper --model.path embedded --task.size 40".split()) == 0
    assert answer(RUNS["tasks"], "--preset default --task.size 8".split()) == 0
    capsys.readouterr()
    assert answer(RUNS["prune"], ["--preset", "none"]) == 2
    assert "--preset none: not a preset" in capsys.readouterr().err


def test_the_wheel_has_them_too(tmp_path):
    """Built from a copy, unpacked into an empty folder, and run there with the installed libraries."""
    copy = copytree(
        ROOT,
        tmp_path / "copy",
        ignore=ignore_patterns(".*", "tests", "docs", "benchmarks", "build", "*.egg-info", "runs"),
    )
    words = "-m pip wheel -q --no-deps --no-build-isolation --disable-pip-version-check -w".split()
    subprocess.run([sys.executable, *words, tmp_path / "dist", copy], check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("bigcircuit-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    inside = tmp_path / "site/bigcircuit"
    names = {str(path.relative_to(inside)) for path in inside.rglob("*.*")}
    assert {
        "shipped/configs/presets/paper.yaml",
        "shipped/configs/deepspeed/zero3.json",
        "shipped/launchers/prune.py",
    } <= names
    assert {"report/templates/page.html", "py.typed", "embedded/model/model.safetensors"} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "bigcircuit").rglob("*.py")} == {
        f"bigcircuit/{name}" for name in names if name.endswith(".py") and not name.startswith("shipped")
    }
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "bigcircuit", *"check --preset paper --deepspeed zero3 --task.size 40".split()],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "the config is valid" in done.stdout
