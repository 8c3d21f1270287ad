"""A minute of fuzzing; by hand `python -m tests.fuzz` runs as many inputs as there is time for."""

from pathlib import Path
from random import Random

import pytest

from bigcircuit.errors import UserError
from tests.fuzz.harness import run_input
from tests.fuzz.kinds import KINDS, prepare
from tests.fuzz.mutate import damaged_bytes, damaged_json

INPUTS = {
    "YAML": 200,
    "words": 200,
    "circuit files": 150,
    "pair files": 80,
    "chat pair files": 60,
    "files of convert": 100,
    "convert --to": 60,
    "checkpoints": 20,
    "run folders": 10,
    "evaluations": 10,
    "sweep folders": 2,
    "model folders": 60,
    "weights and quantised weights": 20,
    "adapters": 20,
    "DeepSpeed files": 60,
    "exported models": 15,
}
"""Kind -> inputs of a test."""
KEPT = {
    "pair files": (1709, 1998),
    "model folders": (1021,),
    "run folders": (2, 11, 23, 26, 40, 43),
    "sweep folders": (3, 23, 25),
}
"""Kind -> seeds of inputs that once broke a promise."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, finished_run, swept):
    """What is damaged, made once."""
    prepare(tmp_path_factory.mktemp("fuzz") / "base", finished_run.path, swept)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("name", KINDS)
def test_damaged_inputs_are_read_or_refused_in_one_line(tmp_path, name):
    seeds = [*KEPT.get(name, ()), *range(1000, 1000 + INPUTS[name])]
    found = [run_input(name, KINDS[name], seed, tmp_path / "input") for seed in seeds]
    assert [failure for failure in found if failure] == []


def test_an_input_is_that_of_its_seed():
    for change, value in ((damaged_bytes, b"some bytes" * 9), (damaged_json, {"a": [1, {"b": 2}], "c": "d"})):
        again = [[repr(change(Random(seed), value)) for seed in range(50)] for _ in range(2)]
        assert again[0] == again[1] and len(set(again[0])) > 25


def _outside(_: Random, folder: Path):
    return lambda: (folder.parent / "outside").write_text("x")


def _raises(error):
    def read():
        raise error

    return lambda *_: read


def _spin(*_):
    def read():
        while True:
            pass

    return read


def _takes(size):
    return lambda *_: lambda: b"x" * size


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (_raises(UserError("a line")), None),
        (_raises(SystemExit("x" * 9999)), "a message of 9,999 characters"),
        (_raises(KeyError("x")), "KeyError: "),
        (_raises(RecursionError("x")), "RecursionError: "),
        (_outside, "writes outside its folder: open "),
        (_spin, "more than 2 s of CPU"),
        (_takes(3 * 2**27), "384 MiB"),
        (_takes(2**20), None),
    ],
)
def test_the_harness_sees_every_broken_promise(tmp_path, monkeypatch, kind, what):
    monkeypatch.setattr("tests.fuzz.harness.MOST_SECONDS", 2.0)
    monkeypatch.setattr("tests.fuzz.harness.MOST_BYTES", 2**28)
    failure = run_input("kind", kind, 0, tmp_path / "input")
    assert failure is None if what is None else failure.what.startswith(what)
