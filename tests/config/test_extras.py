"""Optional libraries: the table is that of pyproject.toml, and a core install says in one line what is missing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bigcircuit.config.extras import EXTRAS, need
from bigcircuit.errors import UserError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings this one
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE_ONLY = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name in {hidden}:
    assert name not in sys.modules
sys.meta_path.insert(0, Missing())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in {hidden} else find(name, package)
from bigcircuit.cli import RUNS, answer
for verb, *words in {commands}:
    print("exit", answer(RUNS[verb], words), flush=True)
    sys.stderr.flush()
"""
"""Hides the modules of all extras, as if they were not installed, and runs commands."""
HIDDEN = sorted({module for modules in EXTRAS.values() for module in modules} - {"jinja2"} | {"scipy", "pandas"})


def distributions(requirements):
    return {re.split(r"[\[<>=; ]", one)[0] for one in requirements if not one.startswith("bigcircuit")}


def test_the_table_is_that_of_the_project():
    for name, modules in EXTRAS.items():
        declared = distributions(PROJECT["optional-dependencies"][name])
        through_ray = {"pandas", "pyarrow", "tensorboardX"} if name == "sweep" else set()  # of ray[tune]
        assert {*modules.values()} - through_ray == declared - {"ray", "transformers"}
    assert distributions(PROJECT["dependencies"]) >= set(
        "torch transformers accelerate peft safetensors deepspeed ray pydantic rich numpy".split()
    )


def test_what_is_missing_is_asked_for(monkeypatch):
    monkeypatch.setattr("bigcircuit.config.extras.find_spec", lambda name: None if name == "PIL" else name)
    with pytest.raises(UserError) as caught:
        need("bigcircuit report", "report")
    assert str(caught.value) == ("bigcircuit report needs pillow; pip install 'bigcircuit[report]'")


def test_a_core_install_prunes_compares_and_exports_and_asks_for_the_rest(tmp_path):
    """In a process that cannot import the modules of any extra."""
    quick = "--task.size 80 --train.steps 10 --target.total 200 --train.save_every 10 --task.name ioi".split()
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
    (tmp_path / "sweep.yaml").write_text("{sweep: {space: {train.lr: [0.1, 0.2]}}, target: {total: 0.1}}")
    commands = [
        ["prune", *quick, "--output", "a"],
        ["prune", *quick, "--output", "b", "--train.seed", "1"],
        ["compare", "a", "b"],
        ["evaluate", "a", "--draws", "1", "--partial_draws", "0", "--groups", "0", "--methods", "none"],
        ["export", "a", "--format", "zeroed", "--ablation", "zero", "--output", "small"],
        ["report", "a"],
        ["sweep", "--config", "sweep.yaml"],
        ["check", "--task.name", "pairs", "--task.path", "pairs.parquet", "--target.total", "0.1"],
        ["prune", *quick, "--tracking.trackers", "[tensorboard]", "--output", "c"],
        ["export", "a", "--format", "gguf", "--ablation", "zero", "--output", "gguf"],
    ]
    script = CORE_ONLY.format(hidden=json.dumps(HIDDEN), commands=json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == ["exit 0"] * 5 + ["exit 2"] * 5, (
        done.stderr
    )
    note = "no page without matplotlib, pillow: pip install 'bigcircuit[report]', then bigcircuit report"
    assert done.stdout.count(note) == 4 and not list(tmp_path.rglob("report.html"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("bigcircuit: ")]
    assert [re.search(r"bigcircuit\[(\w+)\]", line)[1] for line in errors] == [
        "report", "sweep", "data", "tracking", "gguf",
    ]  # fmt: skip
    assert not (tmp_path / "c").exists() and not (tmp_path / "gguf").exists()
