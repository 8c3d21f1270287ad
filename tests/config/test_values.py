"""What words on the command line mean: text is text, numbers and the like are YAML."""

import pytest

from bigcircuit.cli import parse_verb
from bigcircuit.config.load import load
from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.sweep.config import SweepSettings

LOOK_LIKE_SOMETHING_ELSE = [
    "runs/exp #1", "0123", "no", "2026-01-31", "1234567", "yes", "1e3", "~", "a: b", "[x", "{", "'a'", "- x", "*a", "%", "null ",
]  # fmt: skip


def given(*words):
    return parse_verb("prune", words).settings[Config]


@pytest.mark.parametrize("text", LOOK_LIKE_SOMETHING_ELSE)
@pytest.mark.parametrize("key", ["output", "model.path", "model.revision", "tracking.project"])
def test_text_is_what_is_typed(key, text):
    for words in ([f"--{key}", text], [f"--{key}={text}"]):
        config = load(None, given(*words))
        section, _, name = key.rpartition(".")
        assert getattr(getattr(config, section) if section else config, name) == text


def test_text_for_a_task_is_what_is_typed():
    config = load(None, given("--task.name", "pairs", "--task.path", "yes", "--task.columns.clean", "0123"))
    assert (config.task.path, config.task.columns) == ("yes", {"clean": "0123"})
    assert given("--task.columns", "{clean: 0123, corrupted: no}") == {
        "task.columns": {"clean": "0123", "corrupted": "no"}
    }


def test_null_is_none_where_there_may_be_no_text_and_text_where_there_must_be():
    assert given("--deepspeed", "null", "--task.path=", "--model.revision", "none") == {
        "deepspeed": None,
        "task.path": None,
        "model.revision": "none",
    }
    assert given("--output", "null") == {"output": "null"}
    for words in (["--output", ""], ["--task.labels="], ["--task.columns.clean", ""]):
        with pytest.raises(UserError, match=f"^{words[0].rstrip('=')} needs a value$"):
            given(*words)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--train.lr", "1e-3"], 0.001),
        (["--train.steps", "1e3"], 1000.0),
        (["--gates.init", "-1"], -1),
        (["--gates.init=-1"], -1),
        (["--gates.init", "-1e-3"], -0.001),
        (["--gates.init", "-.5"], -0.5),
        (["--train.both-ways", "false"], False),
        (["--train.both_ways", "no"], False),
        (["--train.checkpointing", "cpu"], "cpu"),
        (["--train.checkpointing", "true"], True),
        (["--gates.granularities", "[head, mlp]"], ["head", "mlp"]),
        (["--tracking.trackers", "[]"], []),
        (["--target.total", "null"], None),
        (["--population.members", "[{train.lr: 1e-3}, {train.seed: 3}]"], [{"train.lr": 0.001}, {"train.seed": 3}]),
    ],
)
def test_all_else_is_yaml(words, value):
    [read] = given(*words).values()
    assert read == value and type(read) is type(value)


def test_names_of_files_in_lists_are_text():
    given = parse_verb("evaluate", ["--tasks", "0123,runs/exp #1", "--control=[no, 007]", "--output", "0123"])
    settings = EvaluationSettings(**given.settings[EvaluationSettings])
    assert (settings.tasks, settings.control) == (("0123", "runs/exp #1"), ("no", "007"))
    assert settings.output == "0123" and given.settings[Config] == {}


def test_what_is_searched_is_yaml():
    words = ["--sweep.space.train.lr", "[1e-3, 0.1]", "--sweep.space.penalty.head", "{log_uniform: [1e-2, 1]}"]
    assert parse_verb("sweep", words).settings[SweepSettings] == {
        "sweep.space.train.lr": [0.001, 0.1],
        "sweep.space.penalty.head": {"log_uniform": [0.01, 1]},
    }
