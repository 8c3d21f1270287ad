"""Which heads and neurons a written layer has."""

import torch

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.export.cut import (
    HeadArrangement,
    arranged,
    arrangements,
    cuts_in_place,
    kept_groups,
    narrowed,
    without_closed_blocks,
)
from bigcircuit.model.granularity import LayerShape
from tests.helpers.exports import random_constants

SHAPE = LayerShape(heads=8, kv_heads=2, head_dim=2, intermediate=5, hidden=16)


def cuts_of(heads: list[list[int]], neurons: list[list[int]], ablation=ZERO):
    """Cuts of layers that keep these heads, whole, and these MLP neurons."""
    masks = {
        "head": torch.tensor([[head in kept for head in range(8)] for kept in heads]),
        "mlp_neuron": torch.tensor([[neuron in kept for neuron in range(5)] for kept in neurons]),
    }
    shapes = [SHAPE] * len(heads)
    return cuts_in_place(complete_masks(masks, shapes), shapes, ablation)


def test_a_key_value_head_goes_when_its_whole_group_is_closed():
    [cut] = cuts_of([[5, 7]], [[1]])
    assert kept_groups(cut.opened["attention"], SHAPE) == [[5, 7]]
    assert cut.kv_heads.tolist() == [-1, 1] and cut.heads.tolist() == [-1] * 5 + [5, -1, 7]
    assert cut.neurons.tolist() == [-1, 1, -1, -1, -1]
    found = arranged(cut, next(arrangements([cut.groups()], SHAPE)))
    assert found.heads.tolist() == [5, 7] and found.kv_heads.tolist() == [1]


def test_groups_of_different_sizes_get_one_size_by_padding_or_by_a_second_copy_of_the_key_value_head():
    [cut] = cuts_of([[0, 1, 2, 4]], [[0]])
    found = list(arrangements([cut.groups()], SHAPE))
    assert all(one.heads <= 8 for one in found)
    costs = [one.heads + one.kv_heads for one in found]
    assert costs == sorted(costs) and HeadArrangement(2, 4) in found
    assert found[0] == HeadArrangement(2, 3), "six heads on two, cheaper than (3, 2), (4, 1) and (2, 4)"
    padded = arranged(cut, HeadArrangement(2, 3))
    assert padded.heads.tolist() == [0, 1, 2, 4, -1, -1] and padded.kv_heads.tolist() == [0, 1]
    divided = arranged(cut, HeadArrangement(3, 2))
    assert divided.heads.tolist() == [0, 1, 2, -1, 4, -1] and divided.kv_heads.tolist() == [0, 0, 1]


def test_one_key_value_head_is_never_divided():
    shape = LayerShape(heads=4, kv_heads=1, head_dim=2, intermediate=5, hidden=8)
    assert list(arrangements([[[0, 2, 3]]], shape)) == [HeadArrangement(1, 3)]


def test_the_arrangement_of_several_layers_holds_all_of_them():
    cuts = cuts_of([[0], [0, 4], [0, 1, 5]], [[0]] * 3)
    best = next(arrangements([cut.groups() for cut in cuts], SHAPE))
    for cut in cuts:
        kept = [head for head in arranged(cut, best).heads.tolist() if head >= 0]
        assert kept == [head for group in cut.groups() for head in group]


def test_neurons_are_padded_to_the_width():
    [cut] = cuts_of([[0]], [[1, 4]])
    assert narrowed(cut).neurons.tolist() == [1, 4]
    assert narrowed(cut, 4).neurons.tolist() == [1, 4, -1, -1]
    [closed] = cuts_of([[0]], [[]])
    assert narrowed(closed).neurons.tolist() == [-1], "a layer has at least one"


def test_blocks_that_add_nothing_go_unless_something_is_added_for_them():
    cuts = cuts_of([[0], [], []], [[1], [], [2]])
    assert [cut.layer for cut in without_closed_blocks(cuts, projection_biases=False)] == [0, 2]
    assert len(without_closed_blocks(cuts, projection_biases=True)) == 3
    with_constants = cuts_of([[0], [], []], [[1], [], [2]], random_constants([SHAPE] * 3))
    assert len(without_closed_blocks(with_constants, projection_biases=False)) == 3
    assert all(cut.biased == (True, True) for cut in with_constants)
    assert [cut.layer for cut in without_closed_blocks(cuts_of([[]] * 2, [[]] * 2), projection_biases=False)] == [0]
