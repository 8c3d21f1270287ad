"""Opening circuits, and whether they belong to the model."""

import pytest

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.cli import answer, run_evaluate
from bigcircuit.config.load import load
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.dataset import load_task
from bigcircuit.model.load import load_config, load_tokenizer


def tokenizer():
    return load_tokenizer(ModelConfig()), load_config(ModelConfig())


def test_circuit_and_model_must_fit(finished, tmp_path, capsys, monkeypatch):
    circuit = Circuit.load(finished / "circuit.safetensors")
    other = tmp_path / "other.safetensors"
    Circuit(circuit.masks, {}, {**circuit.metadata, "model_weights_sha256": "1" * 64}).save(other)
    config = tmp_path / "task.yaml"
    config.write_text("task: {name: ioi, size: 40}\n")
    words = [str(other), "--config", str(config)]
    monkeypatch.setattr("bigcircuit.model.resolve.load_frozen", lambda *_: pytest.fail("weights were loaded"))
    assert answer(run_evaluate, words) == 2
    assert "whose weights hash is 111111111111" in capsys.readouterr().err
    for key, what in (
        ("tokenizer_files_sha256", "whose tokenizer hash is 111111111111, and embedded has "),
        ("task_tokens_sha256", "found on the same pairs with other token ids (hash 111111111111, now "),
        ("adapter", "found with adapter 1111111111"),
    ):
        known = {**circuit.metadata, "task_sha256": load_task(load(str(config)).task, *tokenizer()).sha256}
        Circuit(circuit.masks, {}, {**known, key: "1" * 64}).save(other)
        assert answer(run_evaluate, words) == 2
        assert what in capsys.readouterr().err
    cut = {name: mask[:3] for name, mask in circuit.masks.items()}
    Circuit(cut, {}, {}).save(other)
    assert answer(run_evaluate, words) == 2
    assert "in 3 layers and the model" in capsys.readouterr().err
    assert answer(run_evaluate, [str(other)]) == 2
    assert "give --config FILE" in capsys.readouterr().err
