"""Circuits as sets, and the verb that compares them."""

import json

import numpy as np
import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.overlap import (
    jaccard,
)
from bigcircuit.cli import answer, run_compare
from bigcircuit.results.result_files import read_result
from tests.helpers.short_runs import run


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    return run(tmp_path_factory.mktemp("compare") / "three", population__seeds=3, train__steps=6).path


def test_members_of_a_population_are_compared_and_new_circuits_saved(population, tmp_path, capsys):
    words = [str(population), "--save", "union,intersection,difference", "--output", str(tmp_path)]
    assert answer(run_compare, words) == 0
    result = read_result(tmp_path / "comparison.json")
    assert [one["name"] for one in result["circuits"]] == ["three/0", "three/1", "three/2"]
    masks = [Circuit.load(population / "circuits" / f"{i}.safetensors").masks for i in range(3)]
    for name in ("head", "mlp_neuron"):
        stacked = torch.stack([m[name] for m in masks])
        assert result["overlap"][name]["intersection"] == int(stacked.all(0).sum())
        assert sum(sum(row) for row in result["frequency"][name]) == int(stacked.sum())
        pairs = [jaccard(masks[i][name], masks[j][name]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert result["stability"][name]["mean"] == pytest.approx(np.mean(pairs))
    assert result["overlap"]["total"]["sizes"] == [200, 200, 200]
    saved = {name: Circuit.load(path) for name, path in result["saved"].items()}
    assert saved["union"].sizes()["total"] == result["overlap"]["total"]["union"]
    shown = capsys.readouterr().out
    if result["overlap"]["total"]["intersection"]:
        assert saved["intersection"].sizes()["total"] == result["overlap"]["total"]["intersection"]
    else:
        assert "intersection" not in saved and "intersection: no node is left" in shown
    assert saved["union"].metadata["task"] == "ioi"
    assert len(json.loads(saved["union"].metadata["parents"])) == 3
    assert "…" not in shown and "in all" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "compare needs two circuits or more"),
        (["{run}/circuits/0.safetensors"], "compare needs two circuits or more"),
        (["{run}", "{run}/circuits/0.safetensors"], "circuits/0.safetensors: is named twice; name each circuit once"),
        (["{run}", "--save", "product"], "product is not known"),
        (["{run}", "--draws", "3"], "not a setting"),
        (["{run}/nothing.safetensors", "{run}"], "no such circuit file"),
    ],
)
def test_mistakes_are_one_line(population, capsys, words, message):
    assert answer(run_compare, [word.format(run=population) for word in words]) == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1


def test_another_circuit_of_the_same_name_is_not_replaced(population, tmp_path, capsys):
    """Not that of other circuits, and not one that is compared; the same one is written again."""
    zero, one, two = (str(population / f"circuits/{i}.safetensors") for i in range(3))
    saved = ["--save", "all", "--output", str(tmp_path)]
    union = tmp_path / "union.safetensors"
    for _ in range(2):
        assert answer(run_compare, [zero, one, *saved]) == 0
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    for words in ([zero, two, *saved], [str(union), two, *saved], [str(union), zero, "--save", "union"]):
        assert answer(run_compare, words) == 2
        error = capsys.readouterr().err
        assert f"{union}: exists already and is another circuit" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("key", ["model_weights_sha256", "model_config_sha256", "adapter_files_sha256"])
def test_circuits_of_different_models_are_refused(population, tmp_path, capsys, key):
    circuit = Circuit.load(population / "circuits" / "0.safetensors")
    for name, sha256 in (("one", "1" * 64), ("other", "0" * 64)):
        Circuit(circuit.masks, {}, {**circuit.metadata, key: sha256}).save(tmp_path / f"{name}.safetensors")
    population = tmp_path / "one.safetensors"
    assert answer(run_compare, [str(population), str(tmp_path / "other.safetensors")]) == 2
    assert (
        f"is of a model with other {key.split('_')[-2 if key.startswith('model') else 0]} than"
        in capsys.readouterr().err
    )
