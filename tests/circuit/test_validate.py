"""Circuit files that others wrote: what is missing is made of what is there, what is wrong is one line."""

import json
import math
import resource

import pytest
import torch
from safetensors.torch import save_file

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import KINDS, TENSORS
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
        (
            {**HEADS, "log_alpha.head": torch.ones(2, 2).bfloat16()},
            {},
            "log_alpha.head is bfloat16; write it as float32",
        ),
        (
            {**HEADS, "log_alpha.head": torch.ones(2, 2).to(torch.float8_e4m3fn)},
            {},
            "is float8_e4m3fn; write it as float32",
        ),
        ({"mask.head": torch.ones(2, 2).bfloat16()}, {}, "mask.head is bfloat16; masks are bool"),
        ({"mask.head": torch.ones(2, 2).to(torch.float8_e5m2)}, {}, "mask.head is float8_e5m2; masks are bool"),
        ({"mask.head": torch.full((2, 2), 2, dtype=torch.uint8).view(torch.bool)}, {}, "bytes other than 0 and 1"),
        ({"mask.head": torch.ones(10**9, 0, dtype=torch.bool)}, {"widths": None}, "tensor mask.head is empty"),
        ({**HEADS, "log_alpha.head": torch.ones(0, 2)}, {}, "tensor log_alpha.head is empty"),
        (
            HEADS,
            {"widths": json.dumps(WIDTHS | {"head": [0, 0]})},
            "do not say how many heads",
        ),
        (HEADS, {"widths": json.dumps(WIDTHS | {"mlp_neuron": [4, 0]})}, "do not say how many heads"),
        (HEADS, {"widths": json.dumps(WIDTHS | {"head": [2.0, 2]})}, "(head.0: input should be a valid integer"),
        (HEADS, {"widths": json.dumps(WIDTHS | {"head": [True, 2]})}, "(head.0: input should be a valid integer"),
        (HEADS, {"widths": json.dumps(WIDTHS | {"attention_neuron": [7, 7]})}, "do not say how many heads"),
        (HEADS, {"widths": json.dumps(WIDTHS | {"head": [3, 3], "kv_group": [2, 2]})}, "do not say how many heads"),
        (HEADS, {"widths": json.dumps(WIDTHS | {"block": [2, 1]})}, "do not say how many heads"),
        (
            HEADS,
            {"widths": json.dumps(WIDTHS | {"mlp_neuron": [10**9, 1]})},
            "1,000,000,000 MLP neurons a layer, more than any",
        ),
        (HEADS, {"widths": "[" * 100_000}, "metadata widths is not a JSON object"),
        (HEADS, {"versions": '{"torch": ' + "[" * 500 + "]" * 500 + "}"}, "versions is not as it should be (torch: "),
        (HEADS, {"targets": '{"atom": 3}'}, "targets is not as it should be (atom"),
        (HEADS, {"targets": '{"total": "many"}'}, "targets is not as it should be (total: "),
        (HEADS, {"granularities": "[3]"}, "granularities is not as it should be (0: "),
        (HEADS, {"scores": '{"kl": {"mean": 1}}'}, "scores is not as it should be ("),
        (HEADS, {"scores": '{"interchange": {"kl": 1}}'}, "scores is not as it should be ("),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, tensors, metadata, message):
    path = write(tmp_path / "c.safetensors", tensors, **metadata)
    with pytest.raises(UserError) as raised:
        Circuit.load(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def of_ablation(name, change=lambda tensor: tensor, shape=(), part="constants"):
    """The tensors of a file of a kind, after a change of one part at the MLP. shape: positions of the constants, () for none."""
    tensors = {
        f"{TENSORS[each]}.{site}": torch.ones(2, *(shape if each == "constants" else ()), width)
        for each in KINDS[name].tensors
        for site, width in (("attention", 6), ("mlp", 4))
    }
    changed = f"{TENSORS[part]}.mlp"
    return {**HEADS, **tensors, changed: change(tensors[changed])}


def with_one(value):
    return lambda tensor: tensor.index_fill(-1, torch.tensor(3), value)


MEASURED = [name for name, kind in KINDS.items() if kind.tensors]


@pytest.mark.parametrize("name", MEASURED)
def test_tensors_of_every_kind_are_read_as_runs_write_them(tmp_path, name):
    for shape in [(), (1,), (5,)] if KINDS[name].per_position else [()]:
        circuit = Circuit.load(write(tmp_path / "c", of_ablation(name, shape=shape), ablation=name))
        assert circuit.ablation.constants["mlp"].shape == (1, 2, *(shape or (1,)), 4)


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tensors_of_an_ablation_are_finite(tmp_path, name, value):
    for part in KINDS[name].tensors:
        path = write(tmp_path / "c", of_ablation(name, with_one(value), part=part), ablation=name)
        with pytest.raises(
            UserError, match=rf"^{path}: tensor {TENSORS[part]}\.mlp has values that are NaN or infinite; "
        ):
            Circuit.load(path)


@pytest.mark.parametrize("name", [name for name in MEASURED if not KINDS[name].per_position])
def test_constants_by_position_are_of_kinds_by_position(tmp_path, name):
    for positions in (0, 1, 3):
        path = write(tmp_path / "c", of_ablation(name, shape=(positions,)), ablation=name)
        with pytest.raises(
            UserError, match=rf"\.(attention|mlp) is by position and {name} ablation is not; write it as"
        ):
            Circuit.load(path)


def test_constants_by_position_have_one_position_or_more(tmp_path):
    path = write(tmp_path / "c", of_ablation("mean_per_position", shape=(0,)), ablation="mean_per_position")
    with pytest.raises(UserError, match=r"\.(attention|mlp) has no positions; write \[layers, positions, nodes\]"):
        Circuit.load(path)


def test_deviations_are_not_negative(tmp_path):
    path = write(tmp_path / "c", of_ablation("noise", with_one(-0.5), part="deviations"), ablation="noise")
    with pytest.raises(UserError, match=r"ablation_deviation\.mlp has negative standard deviations; take the tensors"):
        Circuit.load(path)
    Circuit.load(write(tmp_path / "c", of_ablation("noise", with_one(0.0), part="deviations"), ablation="noise"))
    Circuit.load(write(tmp_path / "c", of_ablation("noise", with_one(-0.5)), ablation="noise"))


def test_no_ablation_has_an_unknown_name():
    with pytest.raises(ValueError, match="ablation telepathy is not known"):
        Ablation("telepathy")


def test_metadata_of_a_few_bytes_asks_for_no_memory(tmp_path):
    path = write(tmp_path / "c", HEADS, widths=json.dumps(WIDTHS | {"mlp_neuron": [10**9, 10**9]}))
    assert path.stat().st_size < 700
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="more than any model has"):
        Circuit.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
