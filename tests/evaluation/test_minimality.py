"""Minimality: groups of kept nodes, circuits without them, and which of them are necessary."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigcircuit.circuit.masks import complete_masks, leaves
from bigcircuit.evaluation.minimality import MinimalityTest, groups, minimality, without, worth_testing
from bigcircuit.gates.discretise import count
from bigcircuit.metrics.registry import example_scores
from bigcircuit.metrics.score import ExampleScores
from bigcircuit.model.granularity import LayerShape
from tests.helpers.strategies import circuits


@settings(deadline=None, max_examples=60)
@given(circuits(), st.integers(1, 5))
def test_groups_cover_every_kept_node_once_and_close_what_is_below(made, limit):
    masks, shapes = made
    for name in ("block", "attention", "mlp", "kv_group", "head", "attention_neuron", "mlp_neuron"):
        found, size = groups(masks[name], limit)
        places = [(layer, node) for layer, nodes in found for node in nodes]
        assert sorted(places) == [tuple(place) for place in masks[name].nonzero().tolist()]
        assert all(len(nodes) <= size for _, nodes in found)
        assert len(found) <= limit + len(shapes) - 1 or not places
        for group in found:
            left = complete_masks(without(masks, name, [group], shapes), shapes)
            assert not left[name][group.layer, group.nodes].any()
            assert count(left)["total"] < count(masks)["total"]
            assert all(not (left[leaf] & ~masks[leaf]).any() for leaf in leaves(masks))
        if places:
            gone = complete_masks(without(masks, name, found, shapes), shapes)
            assert not gone[name].any()


def test_closing_a_head_leaves_the_rest_of_its_layer():
    shapes = [LayerShape(2, 2, 2, 2, 4)]
    masks = complete_masks({"attention_neuron": torch.ones(1, 4).bool(), "mlp_neuron": torch.ones(1, 2).bool()}, shapes)
    (first, _), size = groups(masks["head"], 10)
    assert (first.layer, first.nodes, size) == (0, [0], 1)
    left = without(masks, "head", [first], shapes)
    assert left["attention_neuron"].tolist() == [[False, False, True, True]]
    assert left["mlp_neuron"].all()
    assert without(masks, "block", [first], shapes)["mlp_neuron"].sum() == 0


def test_minimality_is_measured_under_the_ablation_of_the_circuit_only(result):
    ablations = result["circuits"][0]["ablations"]
    assert not ablations["zero"]["minimality"]
    found = ablations["interchange"]["minimality"]
    kept = result["circuits"][0]["kept"]
    assert set(found) == {name for name in kept if kept[name] and name != "total"}
    for name, one in found.items():
        assert (
            sum(len(group["nodes"]) for group in one["dropped"]) == one["kept"] == result["circuits"][0]["kept"][name]
        )
        assert len(one["dropped"]) <= 4 + 3
        spare = sum(len(group["nodes"]) for group in one["dropped"] if not group["necessary"])
        assert one["unnecessary"] == spare
        changes = [group["kl_change"]["mean"] for group in one["dropped"]]
        assert changes == sorted(changes, reverse=True)


def test_necessary_nodes_by_hand():
    """KL rises by 1 for each of the neurons 0 and 1 that is closed and by 1 on top of that without both 2 and 3."""
    shapes = [LayerShape(heads=1, kv_heads=1, head_dim=1, intermediate=4, hidden=1)]
    masks = complete_masks({"attention_neuron": torch.ones(1, 1).bool(), "mlp_neuron": torch.ones(1, 4).bool()}, shapes)
    scored = []

    def score(circuits):
        scored.append(len(circuits))
        closed = torch.stack([~circuit["mlp_neuron"][0] for circuit in circuits]).float()
        kl = closed[:, 0] + closed[:, 1] + closed[:, 2] * closed[:, 3]
        return ExampleScores({name: kl.unsqueeze(1).expand(-1, 5) for name in example_scores()})

    test = MinimalityTest(
        masks=masks,
        shapes=shapes,
        baseline=score([masks]),
        score=score,
        summarise=lambda scores: {"kl": float(scores["kl"].mean())},
        limit=10,
        tolerance=1e-3,
    )
    found = minimality(test, "mlp_neuron")
    assert scored == [1, 4, 1]
    assert [(one.nodes, one.necessary, one.kl_change.mean) for one in found.dropped] == [
        ([0], True, 1), ([1], True, 1), ([2], False, 0), ([3], False, 0),
    ]  # fmt: skip
    assert (found.kept, found.group, found.unnecessary) == (4, 1, 2)
    assert found.together == {"kl": 1}, "either of the spare ones can replace the other, and both together are needed"
    assert all(one.neurons == 1 for one in found.dropped)


def test_groups_of_single_heads_are_not_tested_beside_the_heads():
    masks = {name: torch.ones(1, 2).bool() for name in ("kv_group", "head")} | {"mlp": torch.zeros(1, 1).bool()}
    apart = [LayerShape(heads=2, kv_heads=2, head_dim=1, intermediate=1, hidden=1)]
    assert worth_testing(masks, apart) == ["head"]
    assert worth_testing(masks, [replace(apart[0], kv_heads=1)]) == ["kv_group", "head"]
