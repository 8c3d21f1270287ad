"""Sizes that are asked for: refused exactly where no circuit has them, as an exhaustive search of a small model shows."""

import itertools

import pytest
import torch

from bigcircuit.config.load import load, members
from bigcircuit.errors import UserError
from bigcircuit.gates.discretise import count, discretise
from bigcircuit.model.granularity import GRANULARITIES, LayerShape, node_counts
from bigcircuit.train.targets import check_targets, count_targets

SHAPES = (LayerShape(2, 1, 2, 2, 4), LayerShape(1, 1, 2, 1, 4))
NAMES = ("attention", "mlp", "head", "attention_neuron", "mlp_neuron", "total")


@pytest.fixture(scope="module")
def nodes():
    return node_counts(SHAPES, list(GRANULARITIES))


@pytest.fixture(scope="module")
def circuits():
    """Sizes of every circuit of the model, by granularity: each of the 6 attention and 3 MLP neurons is open or closed."""
    found = []
    for signs in itertools.product((-1.0, 1.0), repeat=9):
        attention = torch.tensor([[*signs[:4]], [*signs[4:6], -1.0, -1.0]])
        mlp = torch.tensor([[*signs[6:8]], [signs[8], -1.0]])
        found.append(count(discretise({"attention_neuron": attention, "mlp_neuron": mlp}, SHAPES, {})))
    return found


def is_refused(nodes, sizes):
    try:
        check_targets(members(load(None, {f"target.{name}": size for name, size in sizes.items()})), nodes)
    except UserError:
        return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_one_size_is_refused_exactly_where_no_circuit_has_it(nodes, circuits, name):
    possible = {sizes[name] for sizes in circuits}
    assert max(possible) == nodes[name]
    for size in range(1, nodes[name] + 3):
        assert is_refused(nodes, {name: size}) == (size not in possible), size


@pytest.mark.parametrize(("one", "other"), itertools.combinations(NAMES, 2))
def test_no_two_sizes_are_refused_that_some_circuit_has(nodes, circuits, one, other):
    possible = {(sizes[one], sizes[other]) for sizes in circuits}
    for pair in possible:
        if min(pair) > 0:
            assert not is_refused(nodes, dict(zip((one, other), pair, strict=True))), pair


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [("attention_neuron", "head"), ("head", "attention"), ("mlp_neuron", "mlp"), ("total", "head")],
)
def test_fewer_fine_nodes_than_coarse_ones_are_refused_because_no_circuit_has_them(nodes, circuits, fine, coarse):
    possible = {(sizes[fine], sizes[coarse]) for sizes in circuits}
    for fewer, more in itertools.product(range(1, nodes[fine] + 1), range(1, nodes[coarse] + 1)):
        if fewer < more:
            assert (fewer, more) not in possible
            assert is_refused(nodes, {fine: fewer, coarse: more})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target.head": 4}, r"target\.head is 4 but the model has 3; ask for fewer"),
        ({"target.total": 10}, r"target\.total is 10 but the model has 9; ask for fewer"),
        (
            {"target.mlp_neuron": 1, "target.mlp": 2},
            r"target\.mlp_neuron 1 is below target\.mlp 2, and every mlp needs one",
        ),
        (
            {"target.total": 3, "gates.granularities": ["head"]},
            r"has no gate on the mlp side; add mlp to it or ask for a size of what has gates",
        ),
        (
            {"target.total": 3, "gates.granularities": ["mlp_neuron"]},
            r"has no gate on the attention side; add attention to it",
        ),
        ({"population.members": [{"target.head": 2}, {"target.head": 5}]}, r"target\.head is 5 but the model has 3"),
    ],
)
def test_a_refusal_names_the_target_and_the_remedy(nodes, settings, message):
    with pytest.raises(UserError, match=message):
        check_targets(members(load(None, settings)), nodes)


@pytest.mark.parametrize(
    ("share", "count"),
    [
        (0.1, 179),
        ("10%", 179),
        (200, 200),
        (200.0, 200),
        ("1e-1", 179),
        ("200", 200),
        ("0.01%", 1),
        (0.999, 1790),
        (None, None),
    ],
)
def test_a_share_is_a_rounded_number_of_nodes(share, count):
    config = load(None, {"target.total": share, "target.head": "25%"})
    [counted] = count_targets(members(config), {"total": 1792, "head": 1 if count == 1 else 32})
    assert counted.target.total == count and counted.target.head == (1 if count == 1 else 8)
    assert all(isinstance(size, int) for size in counted.target.sizes().values())


def test_shares_that_contradict_are_refused_as_numbers(nodes):
    with pytest.raises(UserError, match=r"target\.attention_neuron 1 is below target\.head 2"):
        count_targets(members(load(None, {"target.attention_neuron": "10%", "target.head": "80%"})), nodes)
