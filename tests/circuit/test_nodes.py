"""Names and lists of nodes."""

import pytest
import torch

from bigcircuit.circuit.masks import complete_masks
from bigcircuit.circuit.nodes import hook_masks, kept_nodes, node_name, node_names, to_frame
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import GRANULARITIES, LayerShape

SHAPES = [LayerShape(heads=4, kv_heads=2, head_dim=3, intermediate=5, hidden=12)] * 2


@pytest.fixture(scope="module")
def masks():
    """Kept: neurons 0 and 2 of head 1 in layer 0, and MLP neuron 4 of layer 1."""
    attention, mlp = torch.zeros(2, 12).bool(), torch.zeros(2, 5).bool()
    attention[0, [3, 5]], mlp[1, 4] = True, True
    return complete_masks({"attention_neuron": attention, "mlp_neuron": mlp}, SHAPES)


@pytest.mark.parametrize(
    "granularity, index, name",
    [
        ("block", 0, "L7"),
        ("attention", 0, "L7ATTN"),
        ("mlp", 0, "L7MLP"),
        ("kv_group", 1, "L7KV1"),
        ("head", 3, "L7H3"),
        ("attention_neuron", 11, "L7H3.2"),
        ("mlp_neuron", 4, "L7MLP.4"),
        ("mlp_output", 4, "L7OUT.4"),
        ("mixer", 0, "L7MIX"),
        ("mixer_head", 2, "L7M2"),
        ("mixer_neuron", 7, "L7M2.1"),
        ("expert", 5, "L7E5"),
        ("expert_neuron", 16, "L7E5.1"),
    ],
)
def test_names(granularity, index, name):
    assert node_name(granularity, 7, index, 3) == name


def test_every_granularity_has_names_of_its_own():
    names = [
        node_name(name, 0, index, 3) for name, one in GRANULARITIES.items() for index in range(one.width(SHAPES[0]))
    ]
    assert len(set(names)) == len(names)


def test_kept_nodes_with_their_neurons(masks):
    found = {name: [(row.name, row.neurons, row.of) for row in kept_nodes(masks, SHAPES, name)] for name in masks}
    assert found == {
        "block": [("L0", 2, 17), ("L1", 1, 17)],
        "attention": [("L0ATTN", 2, 12)],
        "mlp": [("L1MLP", 1, 5)],
        "kv_group": [("L0KV0", 2, 6)],
        "head": [("L0H1", 2, 3)],
        "attention_neuron": [("L0H1.0", 1, 1), ("L0H1.2", 1, 1)],
        "mlp_neuron": [("L1MLP.4", 1, 1)],
    }


def test_a_table_has_a_row_a_node(masks):
    frame = to_frame(kept_nodes(masks, SHAPES, "head"))
    assert frame.to_dict("records") == [
        {"name": "L0H1", "granularity": "head", "layer": 0, "place": 1, "neurons": 2, "of": 3}
    ]


def test_masks_by_the_names_of_transformer_lens(masks):
    found = hook_masks(masks, SHAPES)
    assert list(found) == [f"blocks.{layer}.{hook}" for layer in (0, 1) for hook in ("attn.hook_z", "mlp.hook_post")]
    assert found["blocks.0.attn.hook_z"].tolist()[1] == [True, False, True] and found["blocks.0.attn.hook_z"].sum() == 2
    assert found["blocks.1.mlp.hook_post"].nonzero().tolist() == [[4]]


def test_of_many_nodes_the_first_three_are_named():
    assert node_names("head", 4, [7], 16) == "L4H7"
    assert node_names("attention_neuron", 4, [0, 17, 31, 32], 16) == "L4H0.0, L4H1.1, L4H1.15, … (4)"


def test_a_circuit_with_experts_has_no_hooks_that_leave_them_out():
    shapes = [LayerShape(heads=4, kv_heads=2, head_dim=3, intermediate=0, hidden=0, experts=4, expert_width=2)] * 2
    made = complete_masks(
        {"head": torch.ones(2, 4).bool(), "expert": torch.tensor([[True, False, True, True]] * 2)}, shapes
    )
    with pytest.raises(UserError, match="has masks of experts, which TransformerLens has no hook for"):
        hook_masks(made, shapes)
