"""Top-k gates: the size is what was asked for, in training and after, for one granularity and for several at once."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import count, discretise
from bigcircuit.gates.members import node_counts
from bigcircuit.gates.population import Population
from bigcircuit.gates.soft_top_k import soft_top_k
from bigcircuit.model.granularity import LayerShape
from bigcircuit.train.pair_filters import swap_pairs
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import current_masks, update
from tests.model.test_architectures import SMALL, build, examples

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


def test_values_add_up_and_keep_the_order():
    scores = torch.randn(3, 1, 40, dtype=torch.float64)
    weight = torch.rand(3, 1, 40, dtype=torch.float64)
    size = torch.tensor([0.5, 4.0, 17.0], dtype=torch.float64).view(3, 1, 1).clamp(max=0.9 * weight.sum(-1).min())
    for temperature in (1.0, 0.1, 0.01):
        found = soft_top_k(scores, size, torch.full_like(size, temperature), weight)
        torch.testing.assert_close((found * weight).sum(-1, keepdim=True), size, rtol=1e-6, atol=1e-9)
        assert (found.gather(-1, scores.argsort(-1)).diff(dim=-1) >= 0).all()


def test_a_cold_one_is_the_top_k():
    scores = torch.randperm(30).double().view(1, 1, 30)
    found = soft_top_k(scores, torch.full((1, 1, 1), 7.0), torch.full((1, 1, 1), 1e-2), torch.ones_like(scores))
    assert torch.equal((found > 0.5).nonzero()[:, -1].sort().values, scores[0, 0].topk(7).indices.sort().values)


def test_the_gradient_goes_through_the_threshold():
    scores = torch.randn(2, 1, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 1, 12, dtype=torch.float64, requires_grad=True)
    size, temperature = torch.full((2, 1, 1), 2.0).double(), torch.full((2, 1, 1), 0.4).double()
    # The threshold is known to about 1e-11, so differences are over more than the usual 1e-6.
    assert torch.autograd.gradcheck(
        lambda s, w: soft_top_k(s, size, temperature, w), (scores, weight), eps=1e-4, atol=1e-5
    )
    # What opens one node closes the others by as much.
    found = soft_top_k(scores, size, temperature, weight.detach())
    gradient = torch.autograd.grad((found * weight.detach()).sum(), scores)[0]
    assert gradient.abs().max() < 1e-9


def test_more_than_there_is_opens_everything():
    scores = torch.randn(1, 1, 9)
    found = soft_top_k(scores, torch.full((1, 1, 1), 50.0), torch.full((1, 1, 1), 0.3), torch.ones_like(scores))
    assert torch.isfinite(found).all() and found.min() > 0.9


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
    return build("llama", SMALL)


def trained(frozen, members_, **overrides):
    config = load(None, {"train.steps": 8, "population.members": members_, **overrides})
    state = TrainState.new(Population.new(members(config), frozen.shapes), node_counts(frozen.shapes, []))
    chosen, passes = examples(4), MicroBatches.of(config, Ranks())
    with Streams(frozen, INTERCHANGE) as streams:
        references = ReferenceLogits(streams, chosen, passes)
        for _ in range(8):
            logged = update(state, streams, references, chosen, passes)
    return state, logged


SETTINGS = [
    {"target.total": 40},
    {"target.total": 15, "train.seed": 3, "train.lr": 0.3, "gates.temperature": 1.0},
    {"target.total": 40, "train.steps": 4, "gates.look_ahead": False},
]


@pytest.mark.parametrize("sampled", [False, True])
def test_members_together_are_what_they_are_alone(frozen, sampled):
    together, logged = trained(frozen, SETTINGS, **{"gates.sampled_sizes": sampled})
    assert logged["penalty"].tolist() == [0, 0, 0]
    for index, setting in enumerate(SETTINGS):
        alone, _ = trained(frozen, [setting], **{"gates.sampled_sizes": sampled})
        for name, values in alone.population.members[0].log_alpha.items():
            mine = together.population.members[index].log_alpha[name]
            torch.testing.assert_close(mine, values, atol=1e-5, rtol=0)
    assert [count(masks)["total"] for masks in current_masks(together)] == [40, 15, 40]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"gates.parametrisation": "sigmoid_top_k"}, "no size is asked for; set target.total"),
        ({"gates.parametrisation": "sigmoid_top_k", "target.head": 3, "penalty.head": 1.0}, "a penalty is set"),
        (
            {"gates.parametrisation": "sigmoid_top_k", "population.members": [{"target.head": 3}, {"target.total": 9}]},
            "give all the same target",
        ),
        ({"gates.sampled_sizes": True}, "gates.sampled_sizes is true but gates.parametrisation is hard_concrete"),
    ],
)
def test_what_does_not_suit_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message):
        members(load(None, overrides))


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        ({}, "hard_concrete"),
        ({"target.total": 9}, "sigmoid_top_k"),
        ({"target.total": 9, "penalty.head": 0.1}, "hard_concrete"),
        ({"population.members": [{"target.total": 9}, {"penalty.head": 0.1}]}, "hard_concrete"),
    ],
)
def test_auto_is_top_k_where_sizes_are_asked_for(overrides, chosen):
    assert {member.gates.parametrisation for member in members(load(None, overrides))} == {chosen}


def test_pairs_serve_both_ways_where_the_model_shows_the_behaviour(frozen):
    chosen = [example._replace(answers=((3,),), wrong_answers=((5,),)) for example in examples(6)]
    with Streams(frozen, INTERCHANGE) as streams:
        found = swap_pairs(streams, chosen, MicroBatches(4))
        assert found[:6] == chosen
        turned = {example.id: example for example in found[6:]}
        for example in chosen:
            ids = torch.tensor([example.corrupted])
            logits = frozen.model(input_ids=ids, use_cache=False).logits[0, -1]
            assert (-1 - example.id in turned) == bool(logits[5] > logits[3])
        for other in turned.values():
            origin = chosen[-1 - other.id]
            assert (other.clean, other.corrupted) == (origin.corrupted, origin.clean)
            assert (other.answers, other.wrong_answers) == (origin.wrong_answers, origin.answers)
        assert 0 < len(turned) < 6, "some of either kind, or the test shows nothing"
        both = [*chosen, *turned.values()]
        assert swap_pairs(streams, both, MicroBatches(4)) == both, "nothing is doubled that is there both ways"
