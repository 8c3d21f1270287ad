"""Layers that circuits share are computed once, and give every circuit the same bits as alone."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO, Ablation
from bigcircuit.data.collate import collate
from bigcircuit.forward.shared_layers import Branches
from bigcircuit.forward.streams import Streams
from tests.helpers.tiny_models import DENSE_SITES, TINY_CASES, random_masks, tiny_model, uneven_examples


def test_branches_of_five_circuits():
    found = Branches.of(["axp", "ayp", "axq", "bxp", "axp"])
    assert found.members == [[0, 3], [0, 1, 3], [0, 1, 2, 3]]
    assert found.parents == [[0, 0], [0, 0, 1], [0, 1, 0, 2]]
    assert found.of_member == [0, 1, 2, 3, 0]
    assert found.is_useful
    assert not Branches.of(["ax", "bx"]).is_useful


@pytest.mark.parametrize("ablation", [INTERCHANGE, ZERO], ids=["interchange", "zero"])
@pytest.mark.parametrize(("name", "settings"), TINY_CASES)
def test_circuits_that_share_layers_have_the_bits_of_those_that_do_not(name, settings, ablation):
    """Circuits as in minimality, which differ in one layer each, with the circuit itself and one twice."""
    frozen = tiny_model(name, settings)
    batch = collate(uneven_examples(), full=True, padding="aligned")
    layers = len(frozen.shapes)
    drawn = random_masks(frozen, layers + 1, 1)
    order = [[0] * layers, *([0] * one + [one + 1] + [0] * (layers - one - 1) for one in range(layers)), [0] * layers]

    def masks(index):
        return {site: values[[which[index] for which in order]].round() for site, values in drawn[index].items()}

    with Streams(frozen, ablation) as streams, torch.no_grad():
        corrupted = streams.record(batch, DENSE_SITES) if streams.over_suffix else None
        apart = streams.masked(batch, masks, len(order), corrupted)
        assert streams.can_share
        shared = streams.masked(batch, masks, len(order), corrupted, Branches.of(order))
    assert torch.equal(shared, apart)
    assert not torch.equal(apart[0], apart[1])
    assert torch.equal(apart[0], apart[-1])


def test_circuits_with_constants_of_their_own_share_nothing():
    frozen = tiny_model("llama", next(case.values[1] for case in TINY_CASES if case.values[0] == "llama"))
    one = torch.zeros(1, len(frozen.shapes), 1, 8)
    assert Streams(frozen, Ablation("mean", {"mlp": one})).can_share
    assert not Streams(frozen, Ablation("optimal", {"mlp": one.repeat(2, 1, 1, 1)})).can_share


@pytest.mark.parametrize("few", [True, False])
def test_ranks_run_the_model_as_often_whatever_their_micro_batches_hold(monkeypatch, few):
    """Under ZeRO-3 every pass gathers weights on all ranks, so that one more on a rank hangs them."""
    name, settings = TINY_CASES[0].values
    frozen, order = tiny_model(name, settings), [[0] * 9, [0] * 8 + [1]]
    layers = len(frozen.shapes)
    drawn = random_masks(frozen, 2, 1)
    monkeypatch.setattr("bigcircuit.forward.streams.FEWEST", 10**6 if few else 1)
    passes = []
    frozen.model.register_forward_pre_hook(lambda *_: passes.append(1))
    with Streams(frozen, ZERO) as streams, torch.no_grad():
        batch = collate(uneven_examples(), full=True)
        streams.masked(batch, lambda index: drawn[index], 2, None, Branches.of([keys[-layers:] for keys in order]))
    assert len(passes) == 2, "one that finds where rows are, and the masked one"
