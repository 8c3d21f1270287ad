"""The plan of an evaluation: names of tasks, and the ablation of each circuit's minimality."""

import json
from pathlib import Path

import pytest

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.evaluation import plan
from bigcircuit.evaluation.ablation_constants import resolve_constants
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.open_circuits import open_circuits
from bigcircuit.evaluation.plan import plan_evaluation


@pytest.fixture
def files(finished, tmp_path):
    """Circuit files, one found under each of these ablations, without constants, and a config for them."""
    circuit = Circuit.load(finished / "circuit.safetensors")
    for name in ("interchange", "zero", "optimal"):
        metadata = {**circuit.metadata, "ablation": name}
        Circuit(circuit.masks, {}, metadata).save(tmp_path / f"{name}.safetensors")
    task = json.loads((finished / "config.json").read_text())["config"]["task"]
    (tmp_path / "task.yaml").write_text(f"task: {json.dumps(task)}\n")
    return tmp_path


def planned(files, *names, **options):
    settings = EvaluationSettings(**options, output=str(files))
    words = [str(files / f"{name}.safetensors") for name in names]
    return plan_evaluation(words, settings, Ranks(), str(files / "task.yaml"), {})


def test_constants_are_decided_once_for_each_circuit_and_ablation(files, monkeypatch):
    calls = []

    def counted(loaded, ablation, *rest):
        calls.append((loaded.name, ablation))
        return resolve_constants(loaded, ablation, *rest)

    monkeypatch.setattr(plan, "resolve_constants", counted)
    found = planned(files, "interchange", "optimal", ablations="optimal,zero,mean")
    assert calls == list(found.constants) and len(set(calls)) == 6
    assert len({id(constants.data) for constants in found.constants.values()} - {id(None)}) == 1


@pytest.mark.parametrize(
    ("ablations", "expected"),
    [
        ("zero,interchange", {"interchange": "interchange", "zero": "zero", "optimal": "zero"}),
        ("optimal,mean", {"interchange": "mean", "zero": "mean", "optimal": "mean"}),
        ("optimal", dict.fromkeys(("interchange", "zero", "optimal"))),
    ],
)
def test_nodes_are_tested_under_an_ablation_that_needs_no_fit(files, ablations, expected):
    found = planned(files, *expected, ablations=ablations)
    assert {loaded.name: found.main_ablation(loaded) for loaded in found.circuits} == expected


def test_ablations_and_tasks_by_default_are_those_of_the_circuits(files):
    found = planned(files, "zero", "interchange", control=str(files / "optimal.safetensors"))
    assert found.ablations == ("zero", "interchange")
    assert [found.task_of(loaded) for loaded in found.circuits] == ["ioi"] * 3
    assert [loaded.control for loaded in found.circuits] == [False, False, True]


def test_tasks_of_one_name_get_names_of_their_own(finished):
    loaded = open_circuits([str(finished)], (), None, {})
    (other,) = open_circuits([str(finished)], (), None, {"task.size": 30})
    assert list(plan._tasks([*loaded, *loaded, other], ())) == ["ioi", "ioi-2"]


def test_circuits_of_two_models_are_refused(finished):
    (loaded,) = open_circuits([str(finished)], (), None, {})
    other = loaded._replace(path=Path("other"), config=load(None, {"model.path": "elsewhere"}))
    with pytest.raises(UserError, match="other: is of model elsewhere"):
        plan._check_one_model([loaded, other])
