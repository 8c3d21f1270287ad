"""Metadata of a circuit file that names its model."""

import json

import pytest

from bigcircuit.circuit.metadata import model_metadata
from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.granularity import LayerShape

HASHES = {"config": "c", "weights": "w", "tokenizer": "t", "adapter": "a"}


@pytest.mark.parametrize(("path", "name"), [("embedded", "embedded"), ("/models/my-llama/", "my-llama"), ("a/b", "b")])
def test_the_model_is_named_without_its_folder(path, name):
    shapes = [LayerShape(heads=4, kv_heads=2, head_dim=3, intermediate=7, hidden=12)]
    found = model_metadata(ModelConfig(path=path), HASHES, shapes)
    assert (found["model"], found["model_revision"], found["adapter"]) == (name, "", "")
    names = ("model_config", "model_weights", "tokenizer_files", "adapter_files")
    assert [found[f"{part}_sha256"] for part in names] == ["c", "w", "t", "a"]
    assert model_metadata(ModelConfig(adapter="/home/me/tuned/"), HASHES, shapes)["adapter"] == "tuned"
    assert json.loads(found["widths"]) == {
        "block": [1], "attention": [1], "mlp": [1], "kv_group": [2], "head": [4], "attention_neuron": [12], "mlp_neuron": [7],
        "mlp_output": [12],
    }  # fmt: skip
