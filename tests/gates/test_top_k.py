"""Top-k gates: the size is what was asked for, in training and after, for one granularity and for several at once."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import count, discretise
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import LayerShape, node_counts
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import current_masks, update
from tests.helpers.tiny_models import TINY, tiny_examples, tiny_model

UNEVEN = (LayerShape(4, 2, 4, 10, 8), LayerShape(2, 1, 4, 6, 8), LayerShape(4, 4, 4, 12, 8))


def population(overrides, shapes=UNEVEN, done=0.0):
    """Members with scores spread out, at a share of their run."""
    torch.manual_seed(0)
    found = Population.new(members(load(None, {"train.steps": 10, "gates.init_spread": 2.0, **overrides})), shapes)
    for member in found.members:
        member.step = round(done * 10)
    return found


def sums(found):
    """Effective site neurons that are open, softly, of each member and example."""
    masks = found.draw([5, 6])
    return sum(sites[name].sum(-1) for sites in map(masks, range(len(found.shapes))) for name in sites)


@pytest.mark.parametrize(
    "sizes",
    [
        {"total": 13},
        {"head": 3, "total": 11},
        {"block": 2, "total": 9},
        {"attention": 2, "head": 4, "total": 14},
        {"attention_neuron": 5, "mlp_neuron": 7},
        {"attention_neuron": 4, "total": 10},
        {"kv_group": 3, "total": 12},
    ],
)
def test_sizes_hold_in_training_and_after(sizes):
    names = ["block", "attention", "mlp", "kv_group", "head", "attention_neuron", "mlp_neuron"]
    asked = {f"target.{name}": size for name, size in sizes.items()}
    found = population({**asked, "gates.granularities": names}, done=1.0)
    expected = found.expected_open()
    for name, size in sizes.items():
        assert expected[name].item() == pytest.approx(size, rel=1e-4)
    neurons = sizes.get("total") or sizes["attention_neuron"] + sizes["mlp_neuron"]
    torch.testing.assert_close(sums(found), torch.full((1, 1), float(neurons)), rtol=1e-4, atol=0)
    kept = count(discretise(found.decided(0), found.shapes, sizes))
    assert {name: kept[name] for name in sizes} == sizes
    gates = found.decided(0)
    assert gates.keys() == dict(found.members[0].log_alpha).keys()
    opened = count(discretise(gates, found.shapes, {}))
    assert abs(opened["total"] - neurons) <= 1, "without being told the sizes, what is above 0 has them"


def test_only_what_has_a_size_gets_gates():
    assert set(population({"target.total": 13}).members[0].log_alpha) == {"attention_neuron", "mlp_neuron"}
    assert set(population({"target.head": 3}).members[0].log_alpha) == {"head"}
    coarse = population({"target.total": 20, "gates.granularities": ["head", "mlp"]}, done=1.0)
    assert set(coarse.members[0].log_alpha) == {"head", "mlp"}
    assert coarse.expected_open()["total"].item() == pytest.approx(20, rel=1e-4)


def test_the_size_falls_from_all_to_what_was_asked():
    sizes = [population({"target.total": 13}, done=done).expected_open()["total"].item() for done in (0, 0.3, 0.7, 1)]
    everything = node_counts(UNEVEN, [])["total"]
    assert sizes[0] == pytest.approx(everything, rel=2e-3)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] == pytest.approx(13, rel=1e-4) == sizes[3]


def test_rounded_values_have_the_soft_gradient():
    soft = population({"target.total": 13}, done=1.0)
    hard = population({"target.total": 13, "gates.parametrisation": "straight_through_top_k"}, done=1.0)
    gradients = []
    for found in (soft, hard):
        masks = torch.cat([found.draw([5])(index)["mlp"].flatten() for index in range(3)])
        gradients.append(
            torch.autograd.grad((masks * torch.arange(len(masks))).sum(), found.members[0].log_alpha["mlp_neuron"])[0]
        )
        if found is hard:
            assert set(masks.tolist()) == {0.0, 1.0}
    torch.testing.assert_close(*gradients)


def test_sampled_sizes_are_those_of_the_example_and_spread_over_all():
    setting = {"target.total": 13, "gates.sampled_sizes": True}
    everything = node_counts(UNEVEN, [])["total"]
    found = population({**setting, "population.seeds": 2}, done=0.5)
    masks = found.draw(range(400))
    sizes = sum(masks(index)[site].sum(-1) for index in range(3) for site in ("attention", "mlp"))
    assert sizes.shape == (2, 400)
    spread = torch.log(sizes / everything).sort().values
    uniform = -torch.log(torch.tensor(50.0)) * (1 - torch.arange(400) / 399)
    assert (spread - uniform).abs().max() < 0.35, "log-uniform from a fiftieth to all"
    again = found.draw([7])
    total = sum(again(i)[s].sum(-1) for i in range(3) for s in ("attention", "mlp"))
    assert total[1, 0].item() == pytest.approx(sizes[1, 7].item())
    assert not torch.allclose(sizes[0], sizes[1])


def test_each_update_looks_ahead_to_the_asked_size_until_it_is_reached():
    def sizes(done, ahead):
        found = population({"target.total": 13, "population.seeds": 300, "gates.look_ahead": ahead}, done=done)
        drawn = sums(found)
        assert torch.equal(drawn[:, 0], drawn[:, -1]), "the same for every example of an update"
        other = sum(masks.sum(-1) for sites in map(found.draw([9]), range(3)) for masks in sites.values())
        assert torch.equal(drawn[:, :1], other)
        return drawn[:, 0], found.expected_open()["total"]

    drawn, allowed = sizes(0.4, True)
    torch.testing.assert_close(allowed, allowed[:1].expand(300), rtol=1e-4, atol=0)
    assert allowed[0] > 20 > 13
    spread = torch.log(allowed / drawn).sort().values / torch.log(allowed[0] / 13)
    assert (spread - torch.arange(300) / 299).abs().max() < 0.1, "log-uniform from the allowed to the asked"
    for done, ahead in ((0.4, False), (1.0, True)):
        drawn, allowed = sizes(done, ahead)
        torch.testing.assert_close(drawn, allowed, rtol=1e-4, atol=0)


@pytest.fixture(scope="module")
def frozen():
    return tiny_model("llama", TINY)


def trained(frozen, members_, **overrides):
    config = load(None, {"train.steps": 8, "population.members": members_, **overrides})
    state = TrainState.new(Population.new(members(config), frozen.shapes), node_counts(frozen.shapes, []))
    chosen, micro_batches = tiny_examples(4), MicroBatches.of(config, Ranks())
    with Streams(frozen, INTERCHANGE) as streams:
        references = ReferenceLogits(streams, chosen, micro_batches)
        for _ in range(8):
            logged = update(state, streams, references, chosen, micro_batches)
    return state, logged


SETTINGS = [
    {"target.total": 40},
    {"target.total": 15, "train.seed": 3, "train.lr": 0.3, "gates.temperature": 1.0},
    {"target.total": 40, "train.steps": 4, "gates.look_ahead": False},
]


@pytest.mark.parametrize("sampled", [False, True])
def test_members_of_top_k_gates_together_are_what_they_are_alone(frozen, sampled):
    together, logged = trained(frozen, SETTINGS, **{"gates.sampled_sizes": sampled})
    assert logged["penalty"].tolist() == [0, 0, 0]
    for index, setting in enumerate(SETTINGS):
        alone, _ = trained(frozen, [setting], **{"gates.sampled_sizes": sampled})
        for name, values in alone.population.members[0].log_alpha.items():
            mine = together.population.members[index].log_alpha[name]
            torch.testing.assert_close(mine, values, atol=1e-5, rtol=0)
    assert [count(masks)["total"] for masks in current_masks(together, frozen)] == [40, 15, 40]
