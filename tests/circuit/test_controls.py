"""Control circuits are what they claim to be, whatever the circuit and the shape of the model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigcircuit.circuit.controls import complement, empty, full, partly_open, random_circuits
from bigcircuit.circuit.masks import complete_masks, leaves
from bigcircuit.model.granularity import LayerShape
from tests.helpers.strategies import circuits


@settings(deadline=None, max_examples=60)
@given(circuits(), st.integers(0, 1000))
def test_random_circuits_have_the_shape_of_the_circuit(made, seed):
    masks, shapes = made
    for drawn in random_circuits(masks, shapes, 3, seed):
        whole = complete_masks(drawn, shapes)
        for name, mask in masks.items():
            assert whole[name].sum(1).tolist() == mask.sum(1).tolist(), name
        for layer, shape in enumerate(shapes):
            width = shape.heads * shape.head_dim
            per_head = [
                sorted(m["attention_neuron"][layer, :width].view(shape.heads, -1).sum(1).tolist())
                for m in (whole, masks)
            ]
            assert per_head[0] == per_head[1]


def test_random_circuits_are_uniform_and_repeatable():
    """Every head of a layer is drawn equally often: chi-squared of 4 heads, 3 degrees of freedom, p = 0.001 at 16.3."""
    shapes = [LayerShape(4, 2, 2, 3, 4)]
    masks = {
        "attention_neuron": torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0]]).bool(),
        "mlp_neuron": torch.tensor([[1, 1, 0]]).bool(),
    }
    drawn = random_circuits(masks, shapes, 2000)
    heads = torch.stack([one["attention_neuron"].view(4, 2).any(1) for one in drawn]).sum(0).double()
    assert float(((heads - 500) ** 2 / 500).sum()) < 16.3
    again = random_circuits(masks, shapes, 2000)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(drawn, again, strict=True) for name in a)


@settings(deadline=None, max_examples=60)
@given(circuits(), st.sampled_from([0.1, 0.5, 0.9]))
def test_circuit_and_complement_divide_the_model(made, fraction):
    masks, shapes = made
    rest, everything = complement(masks, shapes), full(masks, shapes)
    for name, own in leaves(masks).items():
        assert not (own & rest[name]).any()
        assert torch.equal(own | rest[name], everything[name])
        assert not empty(masks)[name].any()
        for drawn in partly_open(masks, shapes, fraction, 2):
            assert not (own & ~drawn[name]).any(), "the circuit stays open"
            assert int((drawn[name] & ~own).sum()) == round(fraction * int(rest[name].sum()))
            assert not (drawn[name] & ~everything[name]).any()


@pytest.mark.parametrize("draws", [0, 1])
def test_no_draws_are_none(draws):
    shapes = [LayerShape(1, 1, 1, 1, 1)]
    masks = {"attention_neuron": torch.ones(1, 1).bool(), "mlp_neuron": torch.ones(1, 1).bool()}
    assert len(random_circuits(masks, shapes, draws)) == draws
