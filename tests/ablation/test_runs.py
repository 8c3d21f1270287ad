"""Runs under mean and optimal ablation: members and ranks change nothing, resuming is exact, files hold the constants."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bigcircuit.ablation.ablation import Ablation, Tokens
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.cli import answer, run_check
from bigcircuit.config.load import load
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import score
from bigcircuit.model.load import load_config
from tests.helpers.launch import DEEPSPEED_CONFIGS, launch
from tests.helpers.short_runs import QUICK, run


@pytest.mark.parametrize("settings", [
    {"ablation__kind": "optimal", "population__seeds": 2},
    {"ablation__kind": "optimal", "gates__granularities": ["mlp_neuron", "mlp_output", "attention_neuron"],
     "gates__parametrisation": "hard_concrete", "gates__warm_start": "integrated_gradients"},
    {"ablation__kind": "optimal", "gates__granularities": ["mlp_neuron"], "target__total": None, "target__mlp_neuron": 300},
    {"ablation__kind": "mean", "ablation__prompts": "both", "gates__warm_start": "integrated_gradients"},
    {"ablation__kind": "mean", "ablation__per_position": True, "task__padding": "left"},
])  # fmt: skip
def test_the_file_alone_gives_the_scores_again(tmp_path, embedded, settings):
    folder = run(tmp_path / "run", **settings)
    frozen, tokenizer = embedded
    config = load(None, {**QUICK, **{key.replace("__", "."): value for key, value in settings.items()}})
    data, summary = load_task(config.task, tokenizer, load_config(config.model)), json.loads(folder.summary.read_text())
    assert summary["ablation"] == config.ablation.name
    for row in summary["members"]:
        circuit = Circuit.load(folder.path / row["circuit"])
        assert circuit.metadata["ablation"] == circuit.ablation.name == config.ablation.name
        assert json.loads(circuit.metadata["scores"])[config.ablation.name]["kl"] == row["scores"]["kl"]
        with Streams(frozen, circuit.ablation) as streams:
            found = score(streams, data.splits["test"], [circuit.masks], MicroBatches(8))["kl"].mean()
        assert found.item() == pytest.approx(row["scores"]["kl"]["mean"], abs=1e-5)
        ranks = {"mean_per_position": 3}.get(config.ablation.name, 2)
        sites = {"attention", "mlp"} | ({"mlp_output"} if "mlp_output" in config.gates.granularities else set())
        assert {site: values.ndim for site, values in circuit.constants.items()} == dict.fromkeys(sites, ranks)
        with safe_open(folder.path / row["circuit"], framework="pt") as file:
            assert {f"ablation.{site}" for site in sites} < set(json.loads(file.metadata()["sha256"]))


def test_ranks_and_weights_in_pieces_change_nothing(tmp_path):
    """Means and learned constants on two ranks under ZeRO-3, against one process with the whole model."""
    base = {**QUICK, "ablation.kind": "optimal", "train.micro_batch_size": 4, "train.steps": 4, "train.validate_every": 4,
            "task.size": 40}  # fmt: skip
    zero3 = {"output": str(tmp_path / "ranks"), "deepspeed": str(DEEPSPEED_CONFIGS / "zero3.json")}
    (tmp_path / "runs.json").write_text(json.dumps([{**base, **zero3}]))
    launch(2, "-m", "tests.helpers.run_series", str(tmp_path / "runs.json"))
    alone = run(tmp_path / "alone", **{key.replace(".", "__"): value for key, value in base.items()})
    ours, theirs = (load_file(path / "circuit.safetensors") for path in (alone.path, tmp_path / "ranks"))
    assert ours.keys() == theirs.keys() and "ablation.mlp" in ours
    for key, values in ours.items():
        torch.testing.assert_close(values, theirs[key], atol=1e-6, rtol=1e-6)


def test_data_is_read_before_weights_and_named_in_the_file(tmp_path, capsys):
    settings = {**QUICK, "ablation.kind": "mean", "ablation.data": str(tmp_path / "no.jsonl")}
    words = [f"--{key}={value}" for key, value in settings.items()]
    assert answer(run_check, words) == 2
    assert capsys.readouterr().err.startswith(f"bigcircuit: ablation.data: {tmp_path / 'no.jsonl'}")
    pair = {"clean": "Alice gave", "corrupted": "Alice took it", "answers": [" a"], "wrong_answers": [" b"]}
    (tmp_path / "bad.jsonl").write_text(json.dumps(pair) + "\n")
    assert answer(run_check, [*words, f"--ablation.data={tmp_path / 'bad.jsonl'}"]) == 2
    said = capsys.readouterr().err
    assert "ablation.data: " in said and "bad.jsonl:1" in said and said.count("\n") == 1
    folder = run(tmp_path / "run", ablation__kind="mean", ablation__data="greater_than", task__size=60)
    metadata = Circuit.load(folder.path / "circuit.safetensors").metadata
    assert metadata["ablation_data"] == "greater_than" and len(metadata["ablation_data_sha256"]) == 64
    assert metadata["ablation_data_sha256"] != metadata["task_sha256"]
    checkpoint = next(folder.checkpoints.iterdir())
    assert (
        json.loads((checkpoint / "state.json").read_text())["base"]["ablation data"] == metadata["ablation_data_sha256"]
    )


@pytest.mark.parametrize(("settings", "words"), [
    ({"ablation.kind": "zero", "ablation.per_position": True}, ["ablation.per_position is true", "ablation.kind is zero"]),
    ({"ablation.kind": "optimal", "ablation.per_position": True}, ["per_position is true", "ablation.kind is optimal"]),
    ({"ablation.data": "ioi"}, ["ablation.data is ioi", "ablation.kind is interchange"]),
    ({"ablation.kind": "zero", "ablation.prompts": "both"}, ["ablation.prompts is both", "ablation.kind is zero"]),
])  # fmt: skip
def test_settings_that_contradict_name_both(settings, words):
    with pytest.raises(UserError) as error:
        load(None, settings)
    assert all(word in str(error.value) for word in words)


def test_a_position_that_no_prompt_of_the_data_has_gets_the_mean_over_all():
    rows = torch.arange(4.0).reshape(1, 1, 4, 1)  # for the positions 0, 1, 2 and for all beyond
    found = Ablation("mean_per_position", {"mlp": rows}).at(
        "mlp", 0, 1, Tokens(torch.tensor([[0, 1, 2, 3, 9], [0, 0, 0, 1, 2]]), torch.arange(2))
    )
    assert found[0, :, :, 0].tolist() == [[0, 1, 2, 3, 3], [0, 0, 0, 1, 2]]
