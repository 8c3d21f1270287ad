"""Weights in parameters: nodes from the strongest on weigh what a circuit of them keeps, and training has the asked share."""

import pytest
import torch

from bigcircuit.config.load import load, members
from bigcircuit.gates.discretise import discretise
from bigcircuit.gates.parameter_weights import ParameterWeights
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import GRANULARITIES, node_counts, widest
from bigcircuit.model.parameter_count import count_parameters, shared_parameters
from bigcircuit.train.layer_sizes import sized_masks
from bigcircuit.train.penalty import Duals
from bigcircuit.train.targets import count_targets, shared_for
from tests.helpers.tiny_models import TINY, tiny_model

EXPERTS = {
    **TINY,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}


def drawn(shapes, names, seed=0):
    """Random scores by granularity."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(len(shapes), widest(shapes, name), generator=generator).double() for name in names}


def weights_of(frozen, names, gated):
    parts = [shared_parameters(layer, "expert_neuron" in gated) for layer in frozen.layers]
    return ParameterWeights(parts, frozen.shapes, names, gated, torch.device("cpu"))


def padding_closed(shapes, name):
    """1 for each node, 0 for padding."""
    widths = torch.tensor([GRANULARITIES[name].width(shape) for shape in shapes])
    return (torch.arange(widest(shapes, name)) < widths.unsqueeze(1)).double()


LLAMA = ("llama", TINY)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (LLAMA, ["head", "mlp_neuron"]),
        (LLAMA, ["attention_neuron", "mlp_neuron"]),
        (LLAMA, ["kv_group", "mlp"]),
        (LLAMA, ["attention", "mlp_neuron"]),
        (("gpt_neox", {**TINY, "num_key_value_heads": 4}), ["attention_neuron", "mlp_neuron"]),
        (("phi3", TINY), ["head", "mlp_neuron"]),
    ],
)
def test_nodes_from_the_strongest_on_weigh_what_a_circuit_of_them_keeps(model, names):
    frozen = tiny_model(*model)
    shapes, scores = frozen.shapes, drawn(frozen.shapes, names)
    weights = weights_of(frozen, names, names)
    flat = torch.cat([scores[name].flatten() for name in names])
    openness = torch.cat([padding_closed(shapes, name).flatten() for name in names])
    weight = weights.weigh(flat, openness)
    order = torch.argsort(flat, descending=True)
    assert weights.outside({}) == 0
    assert float(weight.sum()) == weights.total == count_parameters(frozen, discretise(scores, shapes, {})).total
    for count in (1, 2, 3, 5, len(order) // 2, len(order) - 1):
        border = flat[order[count - 1 : count + 1]].mean()
        masks = discretise({name: values - border for name, values in scores.items()}, shapes, {})
        assert float(weight[order[:count]].sum()) == count_parameters(frozen, masks).kept


def test_weights_by_hand():
    frozen = tiny_model("llama", {**TINY, "num_hidden_layers": 1})
    weights = weights_of(frozen, ["head", "mlp"], ["head", "mlp"])
    # Two groups of two heads of 8 neurons at a hidden size of 32: queries and outputs of a head, keys and values of a group.
    head, group, mlp, norms = 2 * 8 * 32, 2 * 8 * 32, 3 * 48 * 32, 2 * 32
    found = weights.weigh(torch.tensor([0.3, 0.9, 0.2, 0.1, 0.5]).double(), torch.ones(5))
    assert found.tolist() == [head, head + group + norms, head + group, head, mlp]
    found = weights.weigh(torch.tensor([0.3, 0.9, 0.2, 0.1, 0.5]).double(), torch.tensor([1, 0, 1, 0.2, 1]).double())
    expected = [head + group, 0, head + group, 0.2 * head, mlp + norms]
    assert found.tolist() == pytest.approx(expected), "the strongest of those that can be open weighs what is shared"
    tied = weights.weigh(torch.zeros(5).double(), torch.ones(5))
    assert float(tied.sum()) == weights.total, "of equal ones one weighs it"


@pytest.mark.parametrize("own", ["expert", "attention_neuron"])
def test_what_other_nodes_keep_is_counted_beside(own):
    frozen = tiny_model("qwen2_moe", EXPERTS)
    shapes = frozen.shapes
    gated = ["attention_neuron", "mlp_neuron", "expert"]
    names = [name for name in gated if name != own and (name != "expert" or own == "expert")]
    gated = [own, *names]
    scores = drawn(shapes, gated)
    weights = weights_of(frozen, names, gated)
    flat = torch.cat([scores[name].flatten() for name in names])
    openness = torch.cat([padding_closed(shapes, name).flatten() for name in names])
    weight = weights.weigh(flat, openness)
    beside = float(weights.outside({own: (scores[own] > 0).double()}))
    kept = count_parameters(frozen, discretise(scores, shapes, {})).kept
    assert float(weight[flat > 0].sum()) + beside == kept
    assert beside > 0


def population(frozen, settings, done=1.0):
    """Members at a share of their run, with scores spread out, for gates on heads and MLP neurons."""
    gates = {"gates.granularities": ["block", "head", "mlp_neuron"], "gates.init_spread": 2.0, "train.steps": 10}
    configs = count_targets(members(load(None, gates | settings)), node_counts(frozen.shapes, list(GRANULARITIES)))
    found = Population.new(configs, frozen.shapes, shared=shared_for(configs, frozen))
    for member in found.members:
        member.step = round(done * 10)
    return found


@pytest.fixture(scope="module")
def frozen():
    return tiny_model("llama", TINY)


@pytest.mark.parametrize("beside", [{}, {"target.head": 7}, {"target.block": 2}])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_asked_share_holds_in_training_and_after(frozen, share, beside):
    found = population(frozen, {"target.parameters": share, **beside})
    assert found.expected_open()["parameters"].item() == pytest.approx(share, rel=2e-2 if beside else 1e-5)
    gates, target = found.decided(0), found.members[0].config.target
    opened = discretise(gates, frozen.shapes, {})
    counted = count_parameters(frozen, opened)
    head = 2 * 8 * 32 * 2  # the largest node: queries and outputs, keys and values of its group
    assert share - (head + 64) / counted.total < counted.kept / counted.total <= share
    decided = sized_masks(gates, frozen, target)
    assert all(torch.equal(decided[name], opened[name]) for name in decided), "what is above 0 is what is decided"


def test_sizes_fall_and_are_sampled_in_parameters(frozen):
    shares = [
        population(frozen, {"target.parameters": 0.4}, done).expected_open()["parameters"] for done in (0, 0.3, 1)
    ]
    assert shares[0].item() == pytest.approx(1, rel=2e-3)
    assert shares[0] > shares[1] > shares[2]
    sampled = population(frozen, {"target.parameters": 0.4, "gates.sampled_sizes": True}, done=0.5)
    masks = sampled.draw(range(300))
    kept = sum(masks(index)[site].sum(-1) for index in range(3) for site in ("attention", "mlp"))
    spread = torch.log(kept / 240).sort(-1).values[0]
    uniform = -torch.log(torch.tensor(50.0)) * (1 - torch.arange(300) / 299)
    assert (spread - uniform).abs().max() < 0.5, "log-uniform from a fiftieth to all"


def test_members_with_a_share_of_parameters_or_of_neurons_are_what_they_are_alone(frozen):
    asked = [{"target.parameters": 0.4}, {"target.total": 100}, {"target.parameters": 0.7}]
    together = population(frozen, {"population.members": asked}).draw([3])
    for row, settings in enumerate(asked):
        alone = population(frozen, {"population.members": [settings]}).draw([3])
        for index in range(3):
            for site, mask in alone(index).items():
                assert torch.equal(together(index)[site][row], mask[0])


def test_penalties_of_a_share_count_parameters(frozen):
    found = population(frozen, {"target.parameters": 0.4, "gates.parametrisation": "hard_concrete"}, done=1.0)
    for values in found.members[0].log_alpha.values():
        values.data = 20 * values.data.sign()
    share = found.expected_open()["parameters"]
    masks = discretise(found.decided(0), frozen.shapes, {})
    counted = count_parameters(frozen, masks)
    assert share.item() == pytest.approx(counted.kept / counted.total, abs=1e-3)
    config = found.members[0].config
    duals = Duals(config, {"total": 240})
    duals.update({"parameters": torch.tensor(0.6)}, 1.0)
    assert duals.value == {"parameters": pytest.approx(config.train.dual_lr * 0.5)}, "a half more than was asked for"
    assert share.grad_fn is not None


def test_nodes_of_more_worth_a_parameter_are_kept(frozen):
    """Train gates for the largest sum of worths: a node's is its parameters alone, times a factor drawn at random."""
    generator = torch.Generator().manual_seed(3)
    factor = {"head": torch.rand(3, 4, generator=generator), "mlp_neuron": torch.rand(3, 48, generator=generator)}
    worth = {"head": factor["head"] * 2 * 8 * 32, "mlp_neuron": factor["mlp_neuron"] * 3 * 32}

    def kept_worth(settings):
        found = population(frozen, {**settings, "gates.init_spread": 0.1, "train.steps": 100}, done=0)
        optimizer = torch.optim.Adam(found.members[0].log_alpha.values(), lr=0.05)
        for step in range(100):
            found.members[0].step = step
            masks = found.draw([1])
            gates = {"head": [masks(i)["attention"].unflatten(-1, (4, 8))[..., 0] for i in range(3)],
                     "mlp_neuron": [masks(i)["mlp"] for i in range(3)]}  # fmt: skip
            loss = -sum((torch.stack(rows, 2)[0, 0] * worth[name]).sum() for name, rows in gates.items()) / 1000
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        masks = sized_masks(found.decided(0), frozen, found.members[0].config.target)
        counted = count_parameters(frozen, masks)
        return sum(float((masks[name] * worth[name]).sum()) for name in worth), counted.kept / counted.total

    mine, share = kept_worth({"target.parameters": 0.5})
    by_neurons, as_many = kept_worth({"target.total": 120})
    assert share <= 0.5
    assert mine / share > by_neurons / as_many
