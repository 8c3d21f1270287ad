"""Weights in parameters: nodes from the strongest on weigh what a circuit of them keeps, and training has the asked share."""

import pytest
import torch

from bigcircuit.gates.discretise import discretise
from bigcircuit.gates.parameter_weights import ParameterWeights
from bigcircuit.model.granularity import GRANULARITIES, widest
from bigcircuit.model.parameter_count import count_parameters, shared_parameters
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
