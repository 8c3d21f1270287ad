"""Circuits as sets of nodes: laws of set operations, Jaccard by chance, values by hand."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from bigcircuit.circuit.masks import complete_masks
from bigcircuit.circuit.overlap import (
    chance,
    chance_of_two,
    difference,
    intersection,
    jaccard,
    overlap,
    stability,
    union,
)
from bigcircuit.circuit.validate import shapes_of
from bigcircuit.gates.discretise import discretise
from tests.helpers.strategies import circuits


@st.composite
def several(draw):
    """Two or three circuits in one model."""
    masks, shapes = draw(circuits())
    made = [masks]
    for _ in range(draw(st.integers(1, 2))):
        flips = {
            name: torch.tensor(draw(st.lists(st.booleans(), min_size=mask.numel(), max_size=mask.numel()))).view_as(
                mask
            )
            for name, mask in masks.items()
            if name in ("attention_neuron", "mlp_neuron")
        }
        widths = {
            "attention_neuron": [s.heads * s.head_dim for s in shapes],
            "mlp_neuron": [s.intermediate for s in shapes],
        }
        for name, mask in flips.items():
            for layer, width in enumerate(widths[name]):
                mask[layer, width:] = False
        made.append(complete_masks(flips, shapes))
    return made, shapes


@settings(deadline=None, max_examples=60)
@given(several())
def test_laws_of_sets_hold_for_single_neurons(made):
    masks, shapes = made
    together, common, only = union(masks, shapes), intersection(masks, shapes), difference(masks, shapes)
    others = union(masks[1:], shapes) if len(masks) > 2 else masks[1]
    for leaf in ("attention_neuron", "mlp_neuron"):
        assert torch.equal(together[leaf], torch.stack([m[leaf] for m in masks]).any(0))
        assert torch.equal(common[leaf], torch.stack([m[leaf] for m in masks]).all(0))
        assert not (only[leaf] & others[leaf]).any()
        assert torch.equal((only[leaf] | others[leaf]), together[leaf])
        assert torch.equal(union(masks[::-1], shapes)[leaf], together[leaf])
    for result in (together, common, only):
        again = discretise(
            {name: result[name].float() - 0.5 for name in ("attention_neuron", "mlp_neuron")}, shapes, {}
        )
        assert all(torch.equal(result[name], again[name]) for name in result), "parents are open exactly if a child is"
    for name in masks[0]:
        assert torch.equal(together[name], torch.stack([m[name] for m in masks]).any(0)), "of parents too"
        assert not (common[name] & ~torch.stack([m[name] for m in masks]).all(0)).any()


def test_a_head_without_a_common_neuron_is_in_no_intersection():
    shapes = shapes_of({"head": [1], "kv_group": [1], "attention_neuron": [2], "mlp_neuron": [1], "mlp_output": [4]})
    one, two = (
        complete_masks({"attention_neuron": torch.tensor([row]).bool(), "mlp_neuron": torch.ones(1, 1).bool()}, shapes)
        for row in ([1, 0], [0, 1])
    )
    assert one["head"].all() and two["head"].all()
    common = intersection([one, two], shapes)
    assert not common["head"].any() and common["mlp"].all()


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.data())
def test_jaccard_by_chance_is_what_random_sets_have(nodes, data):
    first, second = data.draw(st.integers(0, nodes)), data.draw(st.integers(0, nodes))
    assume(first or second)
    found = chance_of_two(nodes, first, second)
    assert 0 <= found <= 1 + 1e-12
    if first == nodes:
        assert found == pytest.approx(second / nodes)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        a, b = (torch.zeros(nodes, dtype=torch.bool) for _ in range(2))
        a[rng.permutation(nodes)[:first]] = True
        b[rng.permutation(nodes)[:second]] = True
        drawn.append(jaccard(a, b))
    assert np.mean(drawn) == pytest.approx(found, abs=0.02 + 4 * np.std(drawn) / np.sqrt(300))


def test_three_circuits_by_hand():
    masks = [torch.tensor([row]).bool() for row in ([1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0])]
    found = overlap(masks, 4)
    assert (found.sizes, found.intersection, found.union, found.jaccard) == ([2, 2, 3], 1, 3, pytest.approx(1 / 3))
    shares = [2 / 4, 2 / 4, 3 / 4]
    assert found.chance == pytest.approx(np.prod(shares) / (1 - 0.5 * 0.5 * 0.25))
    pairs = stability(masks, 4)
    assert pairs.matrix[0] == pytest.approx([1, 1 / 3, 2 / 3])
    assert (pairs.mean, pairs.min, pairs.max) == pytest.approx(((1 / 3 + 2 / 3 + 2 / 3) / 3, 1 / 3, 2 / 3))
    # two of four twice: 1/6 share both (1), 4/6 share one (1/3), 1/6 none
    assert chance(4, [2, 2]) == pytest.approx(1 / 6 + 4 / 6 / 3)


@pytest.mark.parametrize("nodes, first, second", [(5, 2, 3), (1792, 250, 300), (1_000_000, 5_000, 20_000)])
def test_jaccard_by_chance_is_that_of_the_hypergeometric_distribution(nodes, first, second):
    shared = np.arange(max(0, first + second - nodes), min(first, second) + 1)
    expected = (stats.hypergeom.pmf(shared, nodes, first, second) * shared / (first + second - shared)).sum()
    assert chance_of_two(nodes, first, second) == pytest.approx(expected, rel=1e-6)
