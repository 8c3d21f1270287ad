"""The command line as a user meets it: help of every verb, mistakes in one line, nothing heavy loaded for either."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bigcircuit import cli
from bigcircuit.cli import answer, parse_verb, settings_of
from bigcircuit.config.help import help_sections, kind_name
from bigcircuit.config.load import load
from bigcircuit.config.schema import Config
from bigcircuit.config.verbs import VERBS
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.io.run_dir import RunDir, write_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `bigcircuit` with words; returns exit code, what it prints, and its errors."""

    def typed(*words):
        monkeypatch.setattr(sys, "argv", ["bigcircuit", *words])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        printed = capsys.readouterr()
        return exited.value.code, printed.out, printed.err

    monkeypatch.setenv("COLUMNS", "80")
    return typed


# Help


def known_settings(verb):
    return {key for section in help_sections(VERBS[verb], settings_of(verb)) for key in section.fields}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_a_help_of_its_own(run, name):
    verb, known = VERBS[name], known_settings(name)
    for words in (["--help"], ["-h"]):
        code, shown, error = run(*name.split(), *words)
        assert (code, error) == (0, "")
    lines = shown.splitlines()
    assert lines[0] == f"usage: bigcircuit {name} {verb.usage}".rstrip() and lines[1] == ""
    assert max(map(len, lines)) <= 80 and lines == [line.rstrip() for line in lines]
    assert len(verb.examples) == 3 and sum(line.startswith(f"  bigcircuit {name}") for line in lines) == 3
    assert len(set(verb.settings)) == min(10, len(known)) and set(verb.settings) <= known
    for key in (*verb.settings, *(option.name for option in verb.options)):
        assert sum(line == f"  --{key}" or line.startswith(f"  --{key} ") for line in lines) == 1
    assert (f"bigcircuit {name} --help all" in shown) == (len(verb.settings) < len(known))


def test_there_is_one_table_of_verbs(run):
    assert list(VERBS) == list(cli.RUNS)
    code, shown, _ = run("--help")
    assert code == 0 and max(map(len, shown.splitlines())) <= 80
    for name, verb in VERBS.items():
        assert any(line.split() == [*name.split(), *verb.summary.split()] for line in shown.splitlines())
    assert run() == (2, shown, "")


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, verb in VERBS.items() for words in verb.examples])
def test_every_example_is_valid(name, words):
    typed = shlex.split(words)
    shell = [index for index, word in enumerate(typed) if word in ("|", ">")]
    command = parse_verb(name, typed[: shell[0] if shell else None])
    assert bool(command.names) == VERBS[name].names
    for word in typed:
        assert not word.startswith("configs/") or (ROOT / word).is_file()


def test_help_of_a_section_of_a_setting_and_of_all(run):
    code, gates, _ = run("prune", "--help", "gates")
    assert code == 0 and gates.startswith(
        "gates: The gates: where they are and how they start.\n  --gates.granularities  "
    )
    assert set(Config().gates.model_dump()) == {
        line.split()[0].removeprefix("--gates.") for line in gates.splitlines() if line.startswith("  --")
    }
    assert run("prune", "--help=gates") == run("evaluate", "--help", "gates") == (0, gates, "")
    assert "\ntask.split: " in run("check", "-h", "task")[1]
    assert run("prune", "--help", "train.lr")[1] == (
        "train: The optimisation of the gates.\n"
        "  --train.lr  float, default 0.1\n      Highest learning rate of Adam, per update.\n"
    )
    whole = run("sweep", "--help", "all")[1]
    assert all(f"  --{key}  " in whole for key in known_settings("sweep"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["prune", "--help", "gate"],
            "--help gate: prune has no section gate; its sections are run, model, task, ablation, gates, penalty, target, train, "
            "population, tracking, and all",
        ),
        (["env", "--help", "gates"], "--help gates: env has no section gates; it has no settings"),
    ],
)
def test_an_unknown_section_is_answered_with_those_there_are(run, words, message):
    assert run(*words) == (2, "", f"bigcircuit: {message}\n")


def test_defaults_in_help_are_those_of_the_verb(run):
    """A recovery writes EXPORT-recovered, and the model of an evaluation is that of the run, whatever prune does."""
    for words in (["--help"], ["--help", "output"], ["--help", "all"]):
        assert "--output  str, default EXPORT-recovered" in run("recover", *words)[1]
    assert "--model.path  str, default the run's" in run("evaluate", "--help")[1]
    assert "--output  str, default runs/prune" in run("prune", "--help")[1]
    assert all(verb.defaults.keys() <= known_settings(name) for name, verb in VERBS.items())


def test_help_beside_a_name_is_that_of_the_verb_and_the_last_part_of_a_key_is_enough(run):
    assert run("evaluate", "--help", "runs/a") == run("evaluate", "--help")
    assert run("report", "--help", "runs/a") == run("report", "--help")
    shown = run("prune", "--help", "lr")[1]
    assert "--ablation.lr" in shown and "--train.lr" in shown and "--train.steps" not in shown


def test_help_and_typos_load_no_torch():
    code = f"""
import sys
from bigcircuit import cli
helps = [[*name.split(), "--help", *topic] for name in {list(VERBS)!r} for topic in ([], ["all"])]
for words in [["--help"], ["--version"], *helps,
              ["prune", "--nonsense", "1"], ["evaluate", "runs/a", "--nonsense", "1"], ["convert", "--nonsense", "1"]]:
    sys.argv = ["bigcircuit", *words]
    try:
        cli.main()
    except SystemExit as exited:
        assert exited.code in (0, 2), words
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr
    assert done.stderr.count("--nonsense is not a setting") == 3


def test_a_second_start_of_a_finished_run_loads_no_torch(tmp_path):
    """Its answer takes the time that reading a config takes."""
    folder = tmp_path / "run"
    config = load(None, {"target.total": 100, "output": str(folder)})
    folder.mkdir()
    write_config(RunDir(folder), config, [])
    (folder / "summary.json").write_text("{}")
    code = f"""
import sys
from bigcircuit.cli import answer, run_prune
print(answer(run_prune, ["--config", {str(folder)!r}]), {{"torch", "transformers", "matplotlib", "scipy"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    note = f"{folder} holds a finished run with these settings; nothing to do (--fresh starts another)"
    assert done.stdout == f"{note}\n0 set()\n", done.stderr


def test_launchers_have_the_help_of_their_verb(run):
    for name in ("prune", "evaluate", "sweep"):
        done = subprocess.run([sys.executable, ROOT / f"launchers/{name}.py", "--help"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, run(name, "--help")[1])


def test_versions(run):
    from importlib.metadata import version

    names = ("bigcircuit", "torch", "transformers", "deepspeed")
    assert run("--version") == (0, "".join(f"{name} {version(name)}\n" for name in names), "")


def test_choices_are_named_wherever_they_come_from():
    from typing import Annotated, Literal

    class Choices:
        names = ("a", "b")

    assert (
        kind_name(str, [Choices()])
        == kind_name(Annotated[str, Choices()])
        == kind_name(Literal["a", "b"])
        == "one of a, b"
    )
    assert kind_name(tuple[Annotated[str, Choices()], ...]) == "list of one of a, b"
    assert (kind_name(int | None), kind_name(bool | Literal["cpu"]), kind_name(str)) == ("int", "bool | cpu", "str")


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("chek", "chek is not a verb; did you mean check?"),
        ("--config", "--config is not a verb, which comes first; known: " + ", ".join(VERBS)),
        ("prune --trin.steps 3", "--trin.steps is not a setting; did you mean train.steps?"),
        ("prune --train.step 3", "--train.step is not a setting; did you mean train.steps?"),
        ("prune --fres", "--fres is not a setting; did you mean fresh?"),
        ("prune --nonsense 1", "--nonsense is not a setting; `--help all` lists them"),
        ("prune --train.steps", "--train.steps needs a value"),
        ("prune --train.batch-size --fresh", "--train.batch_size needs a value"),
        ("prune --config", "--config needs a value"),
        ("prune --config=", "--config needs a value"),
        ("prune --fresh=1", "--fresh takes no value"),
        ("prune steps=5", "'steps=5' is not an option; options look like --train.steps 500"),
        ("prune -x", "'-x' is not an option; options look like --train.steps 500"),
        (
            "prune --train.steps [1",
            "--train.steps: [1 is not readable, so not a valid value; lists are written [a, b], mappings {a: b}",
        ),
        ("prune --train.steps -1", "command line: train.steps: input should be greater than or equal to 0, not -1"),
        ("prune --ablation zero", "--ablation is not a setting; did you mean ablation.kind?"),
        ("prune --train.lr 1e300", "command line: train.lr is 1e+300, which is no number that float32 holds"),
        ("prune --task.seed 1" + "0" * 30, "command line: task.seed is beyond 64 bits"),
        ("prune --output \udcff", "command line: output is not UTF-8 text"),
        ("prune --config " + "x" * 256, f'--config: "{"x" * 59} is longer than names may be (255 bytes)'),
        ("report " + "x" * 256, f'report: "{"x" * 59} is longer than names may be (255 bytes)'),
        (
            "tasks --task.columns {clean:a} --task.columns.clean b",
            "--task.columns and --task.columns.clean are both given; give one of them",
        ),
        (
            "check --task.size 1000000000",
            "command line: task.size: input should be less than or equal to 250000, not 1000000000",
        ),
        (
            "prune --task.text.generate 10000000",
            "command line: task.text.generate: input should be less than or equal to 1000000, not 10000000",
        ),
        ("evaluate x --draws 1000000000", "--draws: Input should be less than or equal to 100000, not 1000000000"),
        (
            "evaluate x --partial_draws 1000000",
            "--partial_draws: Input should be less than or equal to 100000, not 1000000",
        ),
        ("check --memory nan", "--memory nan: give a number above 0"),
        ("check --ranks -1", "--ranks -1: give a whole number above 0"),
        ("check --ranks 1" + "0" * 12, "--ranks 1000000000000: give a whole number above 0"),
        ("check --model.path a/b/c", "model.path a/b/c: no such folder; give a folder with config.json or a hub id"),
        ("convert .", ".: cannot be read (Is a directory); name a circuit file of another tool"),
        ("evaluate x --seed 1" + "0" * 30, "--seed: is beyond 64 bits"),
        ("check --ranks many", "--ranks many: give a whole number above 0"),
        ("evaluate runs/a --ablations --draws 3", "--ablations needs a value"),
        ("evaluate runs/a --dras 4", "--dras is not a setting; did you mean draws?"),
        ("evaluate runs/a -x", "'-x' is not an option; options look like --train.steps 500"),
        ("check --config a --config b", "--config is given 2 times; give it once"),
        ("check --memory inf", "--memory inf: give a number above 0"),
        ("check --device tpu", "--device tpu: give a device, cuda or cpu"),
        ("check --device cuda --model.device cpu", "--device cuda: model.device is cpu; leave one out"),
        (
            "prune --model.device tpu",
            "command line: model.device: input should be 'auto', 'cuda' or 'cpu', not \"tpu\"",
        ),
        (
            "evaluate runs/a --model.device tpu",
            "command line: model.device: input should be 'auto', 'cuda' or 'cpu', not \"tpu\"",
        ),
        ("evaluate r --fractions [[1]]", "--fractions: Input should be a valid number, not [1]"),
        (
            "evaluate runs/a --ablation.kind mean",
            "--ablation.kind: evaluate does not read it, so it would change nothing; its own setting is --ablations",
        ),
        (
            "evaluate runs/a --gates.init 2",
            "--gates.init: evaluate does not read it, so it would change nothing; leave it out",
        ),
        (
            "evaluate runs/a --task.labels random",
            "--task.labels: evaluate does not read it, so it would change nothing; its own setting is --control",
        ),
        ("export runs/a --train.lr 2", "--train.lr: export does not read it, so it would change nothing; leave it out"),
        (
            "export runs/a --ablation.kind zero",
            "--ablation.kind: export does not read it, so it would change nothing; its own setting is --ablation",
        ),
        (
            "recover small --recover.generate 9 --train.steps 50",
            "--train.steps: recover does not read it, so it would change nothing; its own setting is --recover.steps",
        ),
        ("compare runs/a --draws 3", "--draws is not a setting; `--help all` lists them"),
        (
            "compare runs/a --train.steps 3",
            "compare has no option --train.steps; that is a setting of `bigcircuit prune`",
        ),
        ("convert a.json --task.name x", "convert has no option --task.name; that is a setting of `bigcircuit prune`"),
        ("convert a.json --model.pth x", "--model.pth is not a setting; did you mean model.path?"),
        ("report a --colour red", "report has no option --colour; it has --output FILE and --figures FOLDER"),
        ("report a -o red", "report has no option -o; it has --output FILE and --figures FOLDER"),
        ("sweep --sweep.trails 3", "--sweep.trails is not a setting; did you mean sweep.trials?"),
        ("sweep best s --heads 3", "sweep best has no option --heads; it has --kl NATS and --neurons COUNT"),
        ("sweep best s --kl low", "--kl low: give a number of nats"),
        ("env now", "env takes no options, not 'now'"),
        ("env --all", "env takes no options, not '--all'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, words, message):
    assert run(*words.split()) == (2, "", f"bigcircuit: {message}\n")


# Words


def test_files_and_options_may_be_mixed():
    words = "runs/a --ablations zero runs/b --train.micro-batch-size=4 --config c.yaml --model.path m runs/c"
    command = parse_verb("evaluate", words.split())
    assert command.names == ["runs/a", "runs/b", "runs/c"]
    assert command.options == {"config": "c.yaml", "allow": None}
    assert command.settings == {
        EvaluationSettings: {"ablations": "zero"},
        Config: {"train.micro_batch_size": 4, "model.path": "m"},
    }


def test_dashes_and_underscores_in_names_are_the_same():
    for flag in ("--dry-run", "--dry_run"):
        given = {"config": None, "allow": None, "dry_run": True, "fresh": False, "address": None}
        assert parse_verb("sweep", [flag]).options == given
    assert parse_verb("prune", ["--train.batch-size", "4"]) == parse_verb("prune", ["--train.batch_size=4"])


@pytest.mark.parametrize("words", [["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"]])
@pytest.mark.parametrize("verb", ["prune", "evaluate"])
def test_what_launchers_add_is_ignored(verb, words):
    assert parse_verb(verb, [*words, "--train.batch_size", "3"]) == parse_verb(verb, ["--train.batch_size", "3"])


def test_what_launchers_add_before_the_verb_is_ignored(run):
    """As of `python -m torch.distributed.launch -m bigcircuit prune` and of `deepspeed --module bigcircuit prune`."""
    for words in (["--local-rank=0"], ["--local_rank=3"]):
        code, _, errors = run(*words, "prune", "--train.steps", "-1")
        assert code == 2 and "train.steps" in errors and "verb" not in errors
        assert run(*words, "--version")[0] == 0


def test_the_last_of_two_values_counts_and_values_may_begin_with_a_dash():
    command = parse_verb("prune", ["--output", "a", "--output", "-b c", "--gates.init", "-2", "--config", "-"])
    assert command.settings[Config] == {"output": "-b c", "gates.init": -2}
    assert command.options == {"config": "-", "preset": None, "allow": None, "fresh": False}


def test_help_wins_over_unknown_words_and_exits(capsys):
    with pytest.raises(SystemExit) as exited:
        answer(cli.run_prune, ["--nonsense", "1", "--help"])
    assert exited.value.code == 0 and capsys.readouterr().out.startswith("usage: bigcircuit prune")
    with pytest.raises(UserError):
        parse_verb("prune", ["--nonsense", "1"])
