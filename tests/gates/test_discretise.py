"""Masks: hierarchy, asked sizes, and agreement with a brute-force definition."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigcircuit.gates.discretise import count, discretise, site_masks
from bigcircuit.model.granularity import GRANULARITIES, LayerShape

SHAPES = (LayerShape(4, 2, 3, 7, 5), LayerShape(4, 2, 3, 7, 5), LayerShape(2, 1, 3, 4, 5))
DEFAULT = ("block", "attention", "mlp", "head", "attention_neuron", "mlp_neuron")


def gates(names, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    widths = {name: max(GRANULARITIES[name].width(s) for s in SHAPES) for name in names}
    return {name: torch.randn(len(SHAPES), width, generator=generator) * 2 + shift for name, width in widths.items()}


def neuron_chain(log_alpha, layer, site, neuron):
    """Weakest gate over one neuron, from the definition: every gate that contains it."""
    shape = SHAPES[layer]
    values = []
    for name, granularity in GRANULARITIES.items():
        if name in log_alpha and site in granularity.sites:
            size = shape.heads * shape.head_dim if site == "attention" else shape.intermediate
            values.append(log_alpha[name][layer, neuron * granularity.width(shape) // size].item())
    return min(values)


@pytest.mark.parametrize(
    "names", [DEFAULT, ("head", "mlp_neuron"), ("block", "kv_group", "attention_neuron"), ("mlp",)]
)
@pytest.mark.parametrize("seed", range(4))
def test_open_means_every_gate_of_the_chain_is_above_zero(names, seed):
    log_alpha = gates(names, seed, shift=1.0)
    masks = discretise(log_alpha, SHAPES, {})
    for layer, shape in enumerate(SHAPES):
        for site, leaf, width in (
            ("attention", "attention_neuron", shape.heads * shape.head_dim),
            ("mlp", "mlp_neuron", shape.intermediate),
        ):
            touched = any(name in log_alpha and site in g.sites for name, g in GRANULARITIES.items())
            for neuron in range(width):
                expected = neuron_chain(log_alpha, layer, site, neuron) > 0 if touched else True
                assert masks[leaf][layer, neuron].item() == expected
            assert not masks[leaf][layer, width:].any(), "padding is never kept"


def assert_consistent(masks):
    """A parent is open exactly when something below it is."""
    for layer, shape in enumerate(SHAPES):
        heads = masks["attention_neuron"][layer, : shape.heads * shape.head_dim].view(shape.heads, -1).any(1)
        assert masks["head"][layer, : shape.heads].equal(heads)
        assert masks["kv_group"][layer, : shape.kv_heads].equal(heads.view(shape.kv_heads, -1).any(1))
        assert masks["attention"][layer].item() == heads.any().item()
        mlp = masks["mlp_neuron"][layer, : shape.intermediate].any().item()
        assert masks["mlp"][layer].item() == mlp
        assert masks["block"][layer].item() == (mlp or heads.any().item())


@given(seed=st.integers(0, 10_000), shift=st.floats(-3, 3))
@settings(max_examples=50, deadline=None)
def test_hierarchy_holds_with_and_without_sizes(seed, shift):
    log_alpha = gates(DEFAULT, seed, shift)
    assert_consistent(discretise(log_alpha, SHAPES, {}))
    assert_consistent(discretise(log_alpha, SHAPES, {"total": 11}))
    assert_consistent(discretise(log_alpha, SHAPES, {"head": 3, "mlp_neuron": 4}))


@given(seed=st.integers(0, 10_000), total=st.integers(1, 48))
@settings(max_examples=60, deadline=None)
def test_total_is_delivered_exactly(seed, total):
    everything = 12 + 7 + 12 + 7 + 6 + 4
    assert count(discretise(gates(DEFAULT, seed), SHAPES, {"total": total}))["total"] == min(total, everything)


@given(
    seed=st.integers(0, 10_000),
    sizes=st.fixed_dictionaries({}, optional={"block": st.integers(1, 3), "head": st.integers(1, 10)}),
)
@settings(max_examples=80, deadline=None)
def test_coarse_sizes_are_delivered_exactly(seed, sizes):
    if "block" in sizes and "head" in sizes:  # the narrowest layer has two heads, so more need not exist
        sizes["head"] = min(sizes["head"], 2 * sizes["block"])
    counted = count(discretise(gates(DEFAULT, seed), SHAPES, sizes))
    for name, size in sizes.items():
        assert counted[name] == size


@pytest.mark.parametrize("head", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_sizes_per_granularity_together(head, seed):
    sizes = {"head": head, "attention_neuron": 9, "mlp_neuron": 6}
    counted = count(discretise(gates(DEFAULT, seed, -2.0), SHAPES, sizes))
    assert counted["head"] == head
    assert counted["attention_neuron"] == min(9, 3 * head)
    assert counted["mlp_neuron"] == 6


def test_a_size_takes_the_strongest():
    log_alpha = gates(("attention_neuron", "mlp_neuron"), 3)
    masks = discretise(log_alpha, SHAPES, {"total": 10})
    kept, dropped = [], []
    for layer, shape in enumerate(SHAPES):
        for leaf, width in (("attention_neuron", shape.heads * shape.head_dim), ("mlp_neuron", shape.intermediate)):
            for value, mask in zip(log_alpha[leaf][layer, :width].tolist(), masks[leaf][layer].tolist(), strict=False):
                (kept if mask else dropped).append(value)
    assert min(kept) > max(dropped)


def test_size_in_whole_heads_is_within_one_head():
    for seed, total in itertools.product(range(5), (5, 12, 20)):
        masks = discretise(gates(("head", "mlp_neuron"), seed), SHAPES, {"total": total})
        assert abs(count(masks)["total"] - total) <= 3
        assert_consistent(masks)


def test_mlp_output_closes_its_mlp_and_the_other_way_round():
    log_alpha = gates((*DEFAULT, "mlp_output"), 1, 2.0)
    log_alpha["mlp_output"][0] = -1.0
    log_alpha["mlp_neuron"][1] = -1.0
    masks = discretise(log_alpha, SHAPES, {})
    assert not masks["mlp"][0].any()
    assert not masks["mlp_neuron"][0].any()
    assert not masks["mlp_output"][1].any()
    assert set(site_masks(masks, 0, SHAPES[0])) == {"attention", "mlp", "mlp_output"}


def test_a_kept_block_is_represented_by_its_stronger_side():
    """All gates are closed, so of each block that is kept only what represents it is open: one neuron, on either side."""
    shapes = (LayerShape(2, 1, 2, 3, 4),) * 3
    log_alpha = {
        "attention_neuron": torch.tensor(
            [[-4.0, -1.0, -5.0, -6.0], [-3.0, -4.0, -4.5, -5.0], [-9.0, -9.0, -9.0, -9.0]]
        ),
        "mlp_neuron": torch.tensor([[-2.0, -3.0, -4.0], [-2.0, -2.5, -1.5], [-9.0, -8.0, -9.0]]),
    }
    masks = discretise(log_alpha, shapes, {"block": 2})
    assert masks["attention_neuron"].nonzero().tolist() == [[0, 1]]
    assert masks["mlp_neuron"].nonzero().tolist() == [[1, 2]]
    assert masks["block"].flatten().tolist() == [True, True, False]


@given(seed=st.integers(0, 10_000), blocks=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_what_represents_a_block_is_its_strongest_neuron(seed, blocks):
    log_alpha = {name: -values.exp() for name, values in gates(("attention_neuron", "mlp_neuron"), seed).items()}
    masks = discretise(log_alpha, SHAPES, {"block": blocks})
    strongest = []
    for layer, shape in enumerate(SHAPES):
        widths = {"attention_neuron": shape.heads * shape.head_dim, "mlp_neuron": shape.intermediate}
        rows = [(log_alpha[name][layer, i].item(), (name, layer, i)) for name, n in widths.items() for i in range(n)]
        strongest.append(max(rows))
    expected = {place for _, place in sorted(strongest, reverse=True)[:blocks]}
    leaves = ("attention_neuron", "mlp_neuron")
    assert {(name, *place) for name in leaves for place in masks[name].nonzero().tolist()} == expected
