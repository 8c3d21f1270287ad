"""`bigcircuit.find`: the same run as `prune`, from objects."""

import json
import sys

import pandas
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

import bigcircuit
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.data.dataset import make_pairs
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.model.weight_files import EMBEDDED
from bigcircuit.prune import prune
from tests.helpers.multimodal_models import save_multimodal
from tests.helpers.short_runs import QUICK

SETTINGS = {key: value for key, value in QUICK.items() if not key.startswith(("task.", "target."))}


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(EMBEDDED)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture(scope="module")
def rows(tokenizer):
    pairs = make_pairs(load(None, {"task.size": 80}).task, tokenizer)
    return [
        {"clean": p.clean, "corrupted": p.corrupted, "answers": list(p.answers), "wrong_answers": list(p.wrong_answers)}
        for p in pairs
    ]


@pytest.fixture(scope="module")
def found(model, tokenizer, rows, tmp_path_factory):
    """A run on a list of rows and a model object, in a folder."""
    return bigcircuit.find(model, tokenizer, rows, size=200, folder=tmp_path_factory.mktemp("f") / "run", **SETTINGS)


def circuit_bytes(folder):
    return (folder / "circuit.safetensors").read_bytes()


def test_the_circuit_is_that_of_prune_to_the_byte(found, tmp_path):
    task = {"task.name": "pairs", "task.path": str(found.folder / "inputs/pairs.jsonl")}
    folder = prune(load(None, {**SETTINGS, **task, "target.total": 200, "output": str(tmp_path / "p")}), Ranks())
    assert circuit_bytes(folder.path) == circuit_bytes(found.folder)


def test_a_path_and_a_builder_are_those_of_prune_too(tmp_path):
    wanted = prune(load(None, {**QUICK, "output": str(tmp_path / "p")}), Ranks())
    found = bigcircuit.find(
        "embedded", pairs="ioi", size=200, folder=str(tmp_path / "f"), task={"size": 80}, quiet=True, **SETTINGS
    )
    assert circuit_bytes(found.folder) == circuit_bytes(wanted.path)


def test_the_result_has_circuit_scores_and_page(found):
    assert found.circuit == Circuit.load(found.folder) and found.circuits == [found.circuit]
    assert found.scores["kl"].mean == found.summary["members"][0]["scores"]["kl"]["mean"]
    assert str(found.report()).endswith("report.html") and "<iframe srcdoc=" in found.report()._repr_html_()
    assert len(repr(found).splitlines()) == 1 and "<svg" in found._repr_html_()
    table = found.to_pandas()
    assert table["total"].tolist() == [found.circuit.sizes()["total"]] and table["kl"][0] == found.scores["kl"].mean


def test_the_model_is_left_as_it_was(model, tokenizer, rows):
    model.train()
    model.lm_head.weight.requires_grad_(False)
    before = [(p.requires_grad, p.grad) for p in model.parameters()]
    bigcircuit.find(model, tokenizer, rows, size="10%", quiet=True, **{**SETTINGS, "train.steps": 2})
    assert model.training and [(p.requires_grad, p.grad) for p in model.parameters()] == before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    model.eval().requires_grad_(True)


@pytest.mark.parametrize(
    "given",
    [
        pandas.DataFrame,
        Dataset.from_list,
        lambda rows: DatasetDict({"train": Dataset.from_list(rows[:50]), "test": Dataset.from_list(rows[50:])}),
        lambda rows: lambda _tokenizer, size, _rng: rows[:size],
        lambda rows: iter([{**row, "answers": tuple(row["answers"])} for row in rows]),
    ],
    ids=["DataFrame", "Dataset", "DatasetDict", "function", "iterator"],
)
def test_pairs_of_every_kind_are_the_rows_of_a_file(given, rows, tmp_path):
    from bigcircuit.library.inputs import task_settings

    settings = task_settings(given(rows), tmp_path / "inputs/pairs.jsonl", lambda make: make(None, 80, None))
    written = [json.loads(line) for line in (tmp_path / "inputs/pairs.jsonl").read_text().splitlines()]
    assert settings == {"task.name": "pairs", "task.path": str(tmp_path / "inputs/pairs.jsonl")}
    assert [{key: value for key, value in row.items() if key != "split"} for row in written] == rows


def test_a_population_has_several_circuits(tokenizer, rows, tmp_path):
    found = bigcircuit.find(
        "embedded", tokenizer, rows, size={"head": 9}, population={"seeds": 2}, quiet=True, **SETTINGS
    )
    assert [circuit.sizes()["head"] for circuit in found.circuits] == [9, 9]
    assert found.to_pandas()["seed"].tolist() == [0, 1] and "2 circuits" in repr(found)
    with pytest.raises(UserError, match=r"found 2 circuits; use .circuits"):
        _ = found.circuit
    kept = found.save(tmp_path / "kept")
    assert [Circuit.load(kept, member=i) for i in (0, 1)] == found.circuits
    with pytest.raises(UserError, match="exists; name a new folder"):
        found.save(kept)
    folder = found.folder
    assert folder.exists()
    del found
    assert not folder.exists()


def test_the_same_call_goes_on_after_an_interruption(found, model, tokenizer, rows, tmp_path, monkeypatch):

    run, real = sys.modules["bigcircuit.prune"], sys.modules["bigcircuit.prune"].update

    def interrupted(state, *args, **kwargs):
        if state.step == 8:
            raise KeyboardInterrupt
        return real(state, *args, **kwargs)

    def again():
        return bigcircuit.find(model, tokenizer, rows, size=200, folder=tmp_path / "r", quiet=True, **SETTINGS)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "update", interrupted)
        again()
    steps = []
    monkeypatch.setattr(run, "update", lambda state, *a, **k: steps.append(state.step) or real(state, *a, **k))
    result = again()
    assert steps == list(range(6, 12))
    again()
    assert len(steps) == 6  # a finished run is not made again
    assert result.circuit == found.circuit
    with pytest.raises(UserError, match="holds a run of other pairs"):
        bigcircuit.find(model, tokenizer, rows[:40], size=200, folder=tmp_path / "r", quiet=True, **SETTINGS)


def test_a_model_that_was_changed_in_memory_is_written_with_the_run(tokenizer, rows, tmp_path):
    changed = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.5)
    found = bigcircuit.find(
        changed, tokenizer, rows, size=200, folder=tmp_path / "r", quiet=True, **{**SETTINGS, "train.steps": 2}
    )
    saved = AutoModelForCausalLM.from_pretrained(found.folder / "inputs/model")
    assert torch.equal(saved.model.norm.weight, changed.model.norm.weight)
    with found.circuit.applied(changed, ablation="zero"):
        pass
    unchanged = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    with pytest.raises(UserError, match="found in model, whose"), found.circuit.applied(unchanged, ablation="zero"):
        pass
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.5)
    with pytest.raises(UserError, match="a model with other weights; name another folder"):
        bigcircuit.find(changed, tokenizer, rows, size=200, folder=tmp_path / "r", quiet=True, **SETTINGS)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"task": {"name": "ioi"}}, "task.name is given by the argument pairs"),
        ({"output": "x"}, "output is given by the argument folder"),
        ({"model.dtype": "bfloat16"}, "model.dtype cannot be set for a model that is loaded already"),
        ({"train": {"step": 3}}, "train.step is not a setting; did you mean train.steps"),
        ({"size": None}, "nothing asks for a small circuit"),
        ({"pairs": []}, "pairs is empty"),
        ({"pairs": [{"clean": "a", "corrupted": object()}]}, "pairs row 0: .* not JSON serializable"),
        ({"pairs": ["a", "b"]}, "pairs row 0: is of type str"),
        ({"pairs": 3}, "pairs is of type int"),
        ({"pairs": [{"clean": "a", "corrupted": "b"}] * 2}, "inputs/pairs.jsonl: no columns? answers, wrong_answers"),
    ],
)
def test_mistakes_are_one_line(model, tokenizer, rows, how, message):
    with pytest.raises(UserError, match=message):
        bigcircuit.find(model, tokenizer, **{"pairs": rows, "size": 200, "quiet": True, **how})


def test_models_that_cannot_be_used_as_objects_are_refused(tokenizer, rows):
    mixed = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    mixed.lm_head.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"parameters of type torch.bfloat16, torch.float32"):
        bigcircuit.find(mixed, tokenizer, rows, size=200)
    with pytest.raises(UserError, match="is not a Hugging Face causal language model"):
        bigcircuit.find(torch.nn.Linear(1, 1), tokenizer, rows, size=200)


def test_tasks_that_are_built_from_a_list(tmp_path):
    with pytest.raises(
        UserError, match="task.name refusal is built from a list; set task.path to a file with the columns"
    ):
        bigcircuit.find(str(EMBEDDED), pairs="refusal", size=10, quiet=True)
    missing = str(tmp_path / "requests.jsonl")
    with pytest.raises(UserError, match="requests.jsonl"):
        bigcircuit.find(str(EMBEDDED), pairs="refusal", size=10, quiet=True, **{"task.path": missing})
    with pytest.raises(UserError, match="task.path is given by the argument pairs"):
        bigcircuit.find(str(EMBEDDED), pairs="ioi", size=10, quiet=True, **{"task.path": missing})


@pytest.mark.parametrize("name", ["gemma3", "qwen2_vl"])
def test_a_multimodal_object_is_its_language_part_as_by_its_path(tmp_path, name):
    model = AutoModelForImageTextToText.from_pretrained(save_multimodal(name, tmp_path / "m"))
    rows = [
        {"clean": [3 + i, 4, 5], "corrupted": [3 + i, 9, 5], "answers": [[7]], "wrong_answers": [[8]]}
        for i in range(12)
    ]
    found = [
        bigcircuit.find(one, None, rows, size=0.3, folder=tmp_path / f"r{i}", quiet=True, **{"train.steps": 2})
        for i, one in enumerate((model, str(tmp_path / "m")))
    ]
    assert all(torch.equal(mask, found[1].circuit.masks[key]) for key, mask in found[0].circuit.masks.items())
    with torch.no_grad(), found[0].circuit.applied(model, ablation="zero") as masked:
        assert masked(torch.tensor([[3, 4, 5]])).logits.isfinite().all()


def test_an_object_with_layers_that_text_skips_is_refused_and_left_as_it_was(tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(save_multimodal("mllama", tmp_path / "m"))
    with pytest.raises(UserError, match="has layers that text does not pass, .* give the model's path"):
        bigcircuit.find(model, None, [{"clean": [3, 4], "corrupted": [3, 9]}] * 3, size=0.3, quiet=True)
    assert len(model.get_decoder().layers) == 4
