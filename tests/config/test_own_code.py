"""Functions that a config names: nothing is imported unless the command line allows it."""

import json
import re
import sys
from types import SimpleNamespace

import pytest

from bigcircuit.cli import RUNS, answer
from bigcircuit.config.own_code import VARIABLE, allow, load_function, read_modules
from bigcircuit.config.schema import TaskConfig
from bigcircuit.data.dataset import make_pairs
from bigcircuit.data.pair import Pair
from bigcircuit.errors import UserError
from bigcircuit.model.architectures import ARCHITECTURES
from bigcircuit.model.sites import architecture_of
from tests.helpers.own_module import module_in
from tests.helpers.short_runs import QUICK

MODULE = """
from pathlib import Path
Path("imported").touch()
NAMES = "Mary Kate Rachel Sarah Anna John Tom Paul Mark Adam".split()

def pairs(tokenizer, size, rng):
    for a in NAMES:
        for b in NAMES:
            if a != b:
                start = f"When {a} and {b} went to the shop,"
                yield {"clean": f"{start} {b} gave it to", "corrupted": f"{start} {a} gave it to", "answers": (f" {a}",),
                       "wrong_answers": f" {b}"}

def nothing(*_):
    return []

def bad(*_):
    return [{"clean": "a"}]

def worse(*_):
    return ["a"]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of a name that no other test has, in the current folder."""
    yield from module_in(tmp_path, monkeypatch, "their", MODULE)


def config_of_a_stranger(tmp_path, module):
    settings = {key: value for key, value in QUICK.items() if not key.startswith("task.")}
    nested: dict = {"task": {"name": f"{module}:pairs"}, "output": str(tmp_path / "run")}
    for key, value in settings.items():
        section, name = key.split(".")
        nested.setdefault(section, {})[name] = value
    (tmp_path / "theirs.yaml").write_text(json.dumps(nested))
    return str(tmp_path / "theirs.yaml")


def test_a_config_runs_nobodys_code_until_it_is_allowed(tmp_path, module, capsys):
    config = config_of_a_stranger(tmp_path, module)
    for verb in ("check", "prune", "tasks"):
        assert answer(RUNS[verb], ["--config", config]) == 2
        assert f"task.name {module}:pairs: is code of the module {module}" in capsys.readouterr().err
    assert answer(RUNS["prune"], ["--config", config, "--allow", "another"]) == 2
    assert not (tmp_path / "imported").exists() and module not in sys.modules and not (tmp_path / "run").exists()
    capsys.readouterr()
    assert answer(RUNS["prune"], ["--config", config, "--allow", module]) == 0
    assert (tmp_path / "imported").exists()
    assert json.loads((tmp_path / "run/summary.json").read_text())["task"] == f"{module}:pairs"


def test_a_run_of_own_code_is_evaluated_only_where_it_is_allowed(tmp_path, module, capsys, monkeypatch):
    assert answer(RUNS["prune"], ["--config", config_of_a_stranger(tmp_path, module), "--allow", module]) == 0
    monkeypatch.delenv(VARIABLE)
    fast = "--draws 0 --partial_draws 0 --groups 0 --methods none".split()
    assert answer(RUNS["evaluate"], [str(tmp_path / "run"), *fast]) == 2
    assert f"add --allow {module}" in capsys.readouterr().err
    assert answer(RUNS["evaluate"], [str(tmp_path / "run"), *fast, "--allow", module]) == 0


@pytest.mark.parametrize(
    "function, message",
    [
        ("nothing", "made no pairs"),
        ("bad", "row 0: no columns corrupted, answers, wrong_answers"),
        ("worse", "row 0: is of type str"),
        ("absent", "has no function absent"),
        ("NAMES", "has no function NAMES"),
    ],
)
def test_what_a_function_returns_is_checked(module, function, message):
    allow([module])
    with pytest.raises(UserError, match=message):
        make_pairs(TaskConfig(name=f"{module}:{function}"), None)


def test_rows_are_pairs(module):
    allow([module])
    first, *rest = make_pairs(TaskConfig(name=f"{module}:pairs"), None)
    assert len(rest) == 89 and first == Pair(
        clean="When Mary and Kate went to the shop, Kate gave it to",
        corrupted="When Mary and Kate went to the shop, Mary gave it to",
        answers=(" Mary",),
        wrong_answers=(" Kate",),
        source=f"{module}:pairs row 0",
    )


@pytest.mark.usefixtures("module")
def test_a_package_covers_its_modules_and_no_other():
    allow(["os"])
    assert callable(load_function("os.path:join", "k"))
    for other in ("ostrich:f", "sys:exit", "osx.path:f"):
        with pytest.raises(UserError, match="runs only if you allow it"):
            load_function(other, "k")
    with pytest.raises(UserError, match="cannot be imported"):
        allow(["no_such_module"]) or load_function("no_such_module:f", "k")


@pytest.mark.parametrize("text", ["", ",", "a-b", "a:b", "../x", "a..b", "1a"])
def test_names_that_are_no_modules_are_refused(text):
    with pytest.raises(ValueError):
        read_modules(text)
    assert read_modules("a, b.c") == ["a", "b.c"]


def test_a_task_of_an_installed_package_is_found_by_name(tmp_path, monkeypatch, module):
    """A package on the path that declares an entry point; its code runs only when the task is named."""
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[bigcircuit.tasks]\ntheir_task = {module}:pairs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="'other_task' is not a task"):
        make_pairs(TaskConfig(name="other_task"), None)
    assert not (tmp_path / "imported").exists()
    assert len(make_pairs(TaskConfig(name="their_task"), None)) == 90


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def pairs(tokenizer, size, rng) return []", "cannot be imported (SyntaxError: "),
        ("raise KeyError(3)", "cannot be imported (KeyError: 3)"),
        ("def pairs(tokenizer, size, rng): return {}[size]", "raised KeyError: 9; mend the function"),
        ("def pairs(tokenizer, size, rng):\n    yield 1 / 0", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_task_raises_is_one_line(tmp_path, monkeypatch, text, message):
    for name in module_in(tmp_path, monkeypatch, "raising", text):
        allow([name])
        with pytest.raises(UserError, match=re.escape(f"task.name {name}:pairs: {message}")):
            make_pairs(TaskConfig(name=f"{name}:pairs", size=9), None)


PACKAGE = """
import torch
from pathlib import Path
Path("imported_parts").touch()
TYPE = {"like": "llama", "mlp": "mlp.down_proj"}
BROKEN = "llama"

def highest(logits, batch):
    first = [int((batch.example_of_score == pair).nonzero()[0]) for pair in range(len(batch.ids))]
    return logits[first].softmax(-1).amax(-1)

def entropy(logits, batch, reference):
    values = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) * batch.kl_weight
    return torch.zeros(len(batch.ids)).index_add(0, batch.example_of_score, values)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that declares an architecture, a metric and a loss; its module leaves a file where it is imported."""
    name = f"parts_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PACKAGE)
    info = tmp_path / "parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[bigcircuit.architectures]\narcee = {name}:TYPE\nctrl9 = {name}:BROKEN\nlost = {name}:absent\n"
        f"[bigcircuit.metrics]\nhighest = {name}:highest\n[bigcircuit.losses]\nentropy = {name}:entropy\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    yield name
    sys.modules.pop(name, None)


def test_parts_of_an_installed_package_are_imported_when_they_are_named(tmp_path, package, monkeypatch, capsys):
    monkeypatch.delitem(ARCHITECTURES, "arcee")
    run = tmp_path / "run"
    words = [word for key, value in QUICK.items() for word in (f"--{key}", str(value))]
    assert answer(RUNS["prune"], [*words, "--output", str(run)]) == 0
    assert not (tmp_path / "imported_parts").exists()
    fast = "--draws 0 --partial_draws 0 --groups 0 --methods none".split()
    assert answer(RUNS["evaluate"], [str(run), *fast, "--metrics", "highest"]) == 0
    assert (tmp_path / "imported_parts").exists() and "highest" in capsys.readouterr().out
    [circuit] = json.loads((run / "evaluation.json").read_text())["circuits"]
    assert 0 < circuit["ablations"]["interchange"]["circuit"]["highest"]["mean"] <= 1
    assert answer(RUNS["evaluate"], [str(run), *fast, "--metrics", "lowest"]) == 2
    assert "metrics lowest: is no function" in capsys.readouterr().err
    assert answer(RUNS["prune"], [*words, "--train.loss", "entropy", "--output", str(tmp_path / "own")]) == 0
    assert "validation.loss" in (tmp_path / "own/metrics.jsonl").read_text()
    assert architecture_of(SimpleNamespace(model_type="arcee")).kind == ARCHITECTURES["llama"].kind
    with pytest.raises(UserError, match=f"model type 'ctrl9': {package}:BROKEN of an installed package is no mapping"):
        architecture_of(SimpleNamespace(model_type="ctrl9"))
    with pytest.raises(UserError, match=f"lost: {package}:absent of an installed package cannot be imported"):
        architecture_of(SimpleNamespace(model_type="lost"))
