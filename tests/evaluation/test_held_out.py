"""Pairs that a circuit was trained on are not scored as held out without a word."""

import shutil

import pytest

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.plan import plan_evaluation
from tests.helpers.pair_files import write_pairs
from tests.helpers.short_runs import run

PEOPLE = (("Anna", "Emma"), ("Lucy", "Jane"), ("Rose", "Kate"), ("Tom", "Jack"))
ROWS = [
    {"clean": f"Then {a} {did}", "corrupted": f"Then {b} {did}", "answers": [f" {a}"], "wrong_answers": [f" {b}"]}
    for did in ("met", "saw", "gave")
    for a, b in PEOPLE
]


def notes_on(*names, config=None, any_model=False, tasks=(), **overrides):
    """The notes of an evaluation's plan."""
    settings = EvaluationSettings(any_model=any_model, tasks=tasks, methods=("none",))
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return list(plan_evaluation(list(map(str, names)), settings, Ranks(), config, given).notes)


@pytest.fixture(scope="module")
def of_file(tmp_path_factory):
    """A run on a pair file."""
    folder = tmp_path_factory.mktemp("held_out")
    path = write_pairs(folder / "p.jsonl", ROWS)
    return run(folder / "run", task__name="pairs", task__path=path, train__steps=1, target__total=200).path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"task__size": 400},
            r"\d+ of the \d+ held-out pairs of ioi have prompts .* \(task\.size is 400 and was \d+\); put",
        ),
        (
            {"task__split__test": 0.8, "task__split__train": 0.1},
            r"\(task\.split\.train is 0\.1 and was 0\.4, task\.split\.test",
        ),
    ],
)
def test_another_division_of_the_pairs_is_refused(finished_run, overrides, message):
    with pytest.raises(UserError, match=rf"^{finished_run.path}/circuit\.safetensors: .*{message}"):
        notes_on(finished_run.path, **overrides)
    assert notes_on(finished_run.path, any_model=True, **overrides) == []


def test_the_pairs_of_then_and_pairs_that_share_no_prompt_are_scored(finished_run):
    assert notes_on(finished_run.path) == notes_on(finished_run.path, model__dtype="bfloat16") == []
    assert notes_on(finished_run.path, task__name="greater_than") == []


def test_a_pair_file_that_has_grown_is_refused(of_file, tmp_path):
    """The pairs are divided anew, and those of then can no longer be told."""
    copy = shutil.copytree(of_file, tmp_path / "run")
    path = write_pairs(tmp_path / "p.jsonl", ROWS)
    assert notes_on(copy, task__path=path) == [], "the same file elsewhere"
    more = [{**row, **{name: row[name].replace("Then", "So") for name in ("clean", "corrupted")}} for row in ROWS]
    write_pairs(tmp_path / "p.jsonl", ROWS + more)
    with pytest.raises(UserError, match=r"3 of the 12 held-out pairs of p have prompts .*\(task\.path is "):
        notes_on(copy, task__path=path)
    old = of_file.parent / "p.jsonl"
    before = old.read_bytes()
    try:
        write_pairs(old, ROWS + more)
        with pytest.raises(
            UserError, match=r"the held-out pairs of p are others than where it was found \(hash .* may be "
        ):
            notes_on(of_file)
    finally:
        old.write_bytes(before)


def test_another_task_with_pairs_of_the_training_is_told(of_file, tmp_path):
    path = write_pairs(tmp_path / "same.jsonl", ROWS)
    config = tmp_path / "c.yaml"
    config.write_text(f"task: {{name: pairs, path: {path}, seed: 4, split: {{train: 0.2, validation: 0, test: 0.8}}}}")
    [note] = notes_on(of_file, tasks=(str(config),))
    assert (
        note.startswith(f"{of_file}/circuit.safetensors: ")
        and "held-out pairs of same have prompts that it was" in note
    )


def test_a_circuit_file_without_its_run(of_file, tmp_path):
    """Only the hash of its held-out pairs is known: the same pairs divided otherwise are refused, other pairs are told."""
    shutil.copy(of_file / "circuit.safetensors", tmp_path / "c.safetensors")
    config, path = tmp_path / "c.yaml", of_file.parent / "p.jsonl"
    config.write_text(f"task: {{name: pairs, path: {path}}}")
    assert notes_on(tmp_path / "c.safetensors", config=str(config)) == []
    with pytest.raises(UserError, match=r"the held-out pairs of p are others than where it was found"):
        notes_on(tmp_path / "c.safetensors", config=str(config), task__seed=7)
    [note] = notes_on(tmp_path / "c.safetensors", config=str(config), task__name="ioi", task__path=None)
    assert "the held-out pairs of ioi are others than where it was found" in note
    circuit = Circuit.load(tmp_path / "c.safetensors")
    plain = {key: value for key, value in circuit.metadata.items() if key != "held_out_sha256"}
    Circuit(circuit.masks, {}, plain).save(tmp_path / "of_another_tool.safetensors")
    assert notes_on(tmp_path / "of_another_tool.safetensors", config=str(config), task__seed=7) == []
