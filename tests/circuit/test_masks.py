"""Masks of every granularity from the masks of some, by hand."""

import torch
from hypothesis import given, settings

from bigcircuit.circuit.masks import complete_masks, leaves
from bigcircuit.model.granularity import LayerShape
from tests.helpers.strategies import circuits

SHAPES = [LayerShape(heads=2, kv_heads=1, head_dim=2, intermediate=3, hidden=4)] * 2


def test_coarse_masks_follow_from_leaf_masks():
    masks = complete_masks(
        {
            "attention_neuron": torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]]).bool(),
            "mlp_neuron": torch.tensor([[0, 0, 0], [1, 0, 0]]).bool(),
        },
        SHAPES,
    )
    assert masks["head"].tolist() == [[False, True], [False, False]]
    assert masks["kv_group"].tolist() == masks["attention"].tolist() == [[True], [False]]
    assert masks["mlp"].tolist() == [[False], [True]] and masks["block"].all()
    assert "mlp_output" not in masks, "nothing was said of outputs of the MLP"


def test_leaf_masks_follow_from_coarse_masks():
    masks = complete_masks({"head": torch.tensor([[True, False], [True, True]])}, SHAPES)
    assert masks["attention_neuron"].tolist() == [[True, True, False, False], [True] * 4]
    assert masks["mlp_neuron"].all(), "masks of heads close no MLP"


@settings(deadline=None, max_examples=40)
@given(circuits())
def test_completing_leaf_masks_or_a_whole_circuit_gives_the_circuit(made):
    masks, shapes = made
    for partial in (leaves(masks), masks):
        again = complete_masks(partial, shapes)
        assert all(torch.equal(mask, again[name]) for name, mask in masks.items())
