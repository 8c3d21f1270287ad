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
        (["--train.lr", "1.0e-3"], 0.001),
        (["--train.lr", "1e-3"], "1e-3"),  # as PyYAML reads it; the field makes it a number
        (["--gates.init", "-1"], -1),
        (["--gates.init=-1"], -1),
        (["--gates.init", "-1.0e-3"], -0.001),
        (["--gates.init", "-.5"], "-.5"),
        (["--train.both-ways", "false"], False),
        (["--train.both_ways", "no"], False),
        (["--train.checkpointing", "cpu"], "cpu"),
        (["--train.checkpointing", "true"], True),
        (["--gates.granularities", "[head, mlp]"], ["head", "mlp"]),
        (["--tracking.trackers", "[]"], []),
        (["--target.total", "null"], None),
        (["--target.total", "0.1"], 0.1),
        (["--target.head", "25%"], "25%"),
        (["--population.members", "[{train.lr: 0.001}, {train.seed: 3}]"], [{"train.lr": 0.001}, {"train.seed": 3}]),
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
    words = ["--sweep.space.train.lr", "[0.001, 0.1]", "--sweep.space.penalty.head", "{log_uniform: [0.01, 1]}"]
    assert parse_verb("sweep", words).settings[SweepSettings] == {
        "sweep.space.train.lr": [0.001, 0.1],
        "sweep.space.penalty.head": {"log_uniform": [0.01, 1]},
    }


def test_a_setting_is_the_same_on_the_command_line_and_in_a_file(tmp_path):
    """A run is resumed by its settings: `1e-2` in a list, which PyYAML leaves as text, must be the same from both."""
    members = "[{train.lr: 1e-2}, {train.lr: 0.05}]"
    (tmp_path / "c.yaml").write_text(f"population: {{members: {members}}}\ntrain: {{lr: 1e-3, clip: .5}}\n")
    typed = load(None, given("--population.members", members, "--train.lr", "1e-3", "--train.clip", ".5"))
    assert load(tmp_path / "c.yaml") == typed and typed.train.lr == 0.001 and typed.train.clip == 0.5


@pytest.mark.parametrize("text", ["!!bool maybe", "!!timestamp x", "[" * 3000 + "]" * 3000, "{a", "2026-13-45"])
def test_yaml_that_cannot_be_read_is_one_line(text):
    with pytest.raises(UserError, match=r"^--train\.steps: .* is not readable"):
        given("--train.steps", text)


def test_two_dashes_as_a_value_are_a_value():
    assert given("--train.lr=--", "--output=--") == {"train.lr": "--", "output": "--"}
    assert given("--output", "--my-folder x") == {"output": "--my-folder x"}
    assert parse_verb("prune", ["--config=--"]).options["config"] == "--"


def test_null_is_no_names():
    settings = parse_verb("evaluate", ["--methods", "null", "--fractions", "0.1,0.5"]).settings[EvaluationSettings]
    read = EvaluationSettings(**settings)
    assert read.methods == () and read.fractions == (0.1, 0.5)
