"""Circuit files that others wrote: what is missing is made of what is there, what is wrong is one line."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.circuit import FORMAT, Circuit
from bigcircuit.errors import UserError
from bigcircuit.io.files import tensor_sha256

WIDTHS = {"head": [2, 2], "kv_group": [1, 1], "attention_neuron": [6, 6], "mlp_neuron": [4, 3], "mlp_output": [5, 5]}


def masks(**rows):
    return {f"mask.{name}": torch.tensor(values, dtype=torch.bool) for name, values in rows.items()}


def write(path, tensors, **metadata):
    hashes = {name: tensor_sha256(tensor) for name, tensor in tensors.items()}
    said = {"format": FORMAT, "sha256": json.dumps(hashes), "widths": json.dumps(WIDTHS), **metadata}
    save_file(tensors, path, {key: value for key, value in said.items() if value is not None})
    return path


HEADS = masks(head=[[1, 0], [0, 0]])


def test_heads_alone_keep_all_their_neurons_and_all_mlps(tmp_path):
    found = Circuit.load(write(tmp_path / "c", HEADS)).masks
    assert found["attention_neuron"].tolist() == [[True] * 3 + [False] * 3, [False] * 6]
    assert found["mlp_neuron"].tolist() == [[True] * 4, [True] * 3 + [False]], "padding stays closed"
    assert found["attention"].tolist() == [[True], [False]] and found["kv_group"].tolist() == [[True], [False]]
    assert found["block"].all() and "mlp_output" not in found


def test_masks_that_contradict_each_other_multiply(tmp_path):
    attention = [[1, 1, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0]]
    tensors = masks(
        head=[[1, 0], [1, 1]], attention_neuron=attention, mlp=[[0], [1]], mlp_neuron=[[1, 1, 1, 1], [1, 0, 0, 1]]
    )
    circuit = Circuit.load(write(tmp_path / "c", tensors))
    assert circuit.masks["attention_neuron"].tolist() == [
        [True, True, False, False, False, False],
        [False, False, False, True, False, False],
    ]
    assert circuit.masks["head"].tolist() == [[True, False], [False, True]], "a head with nothing open in it is closed"
    assert circuit.masks["mlp_neuron"].tolist() == [[False] * 4, [True, False, False, False]]
    circuit.save(tmp_path / "again")
    again = Circuit.load(tmp_path / "again")
    assert all(torch.equal(mask, again.masks[name]) for name, mask in circuit.masks.items())
    assert again.sizes() == circuit.sizes() and again.metadata["widths"] == json.dumps(
        json.loads(again.metadata["widths"])
    )


def test_widths_are_those_of_the_masks_where_the_file_does_not_say(tmp_path):
    tensors = masks(head=[[1, 0]], attention_neuron=[[1, 0, 0, 0]], mlp_neuron=[[1, 0, 1]])
    circuit = Circuit.load(write(tmp_path / "c", tensors, widths=None))
    assert circuit.sizes() == {
        "block": 1, "attention": 1, "mlp": 1, "head": 1, "attention_neuron": 1, "mlp_neuron": 2, "total": 3,
    }  # fmt: skip
    with pytest.raises(UserError, match="do not say how many heads, attention neurons and MLP neurons"):
        Circuit.load(write(tmp_path / "c", HEADS, widths=None))


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (HEADS, {"ablation": "telepathy"}, "ablation telepathy is not known; use any of interchange, zero"),
        (HEADS, {"sha256": None}, "has no hash of tensor mask.head"),
        (HEADS, {"sha256": "{oops"}, "metadata sha256 is not a JSON object"),
        (HEADS, {"widths": "[1]"}, "metadata widths is not a JSON object"),
        (HEADS, {"widths": '{"head": []}'}, "do not say how many heads"),
        (HEADS, {"scores": "3"}, "metadata scores is not a JSON object"),
        (masks(atom=[[1, 0], [0, 0]]), {}, "mask.atom is of nothing known; use mask. and any of block, attention"),
        ({"mask.head": torch.ones(2, 2)}, {}, "mask.head is float32; masks are bool"),
        (masks(head=[1, 0]), {}, "has 1 dimensions"),
        (masks(head=[[1, 0, 1], [0, 0, 1]]), {}, "has 3 nodes in 2 layers and its metadata widths say 2 in 2"),
        (masks(head=[[1, 0]]), {}, "has 2 nodes in 1 layers and its metadata widths say 2 in 2"),
        ({**HEADS, "ablation.mlp": torch.ones(2, 9)}, {}, "ablation.mlp has 9 nodes"),
        ({**HEADS, "log_alpha.head": torch.ones(2, 2, dtype=torch.int32)}, {}, "log_alpha.head is int32"),
        ({"log_alpha.head": torch.ones(2, 2)}, {}, "has no masks"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, tensors, metadata, message):
    path = write(tmp_path / "c.safetensors", tensors, **metadata)
    with pytest.raises(UserError) as raised:
        Circuit.load(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_no_ablation_has_an_unknown_name():
    with pytest.raises(ValueError, match="ablation telepathy is not known"):
        Ablation("telepathy")
