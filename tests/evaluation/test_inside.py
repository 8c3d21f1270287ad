"""What the most needed nodes do, against the weights themselves."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import softmax

from bigcircuit.evaluation.inside import look_inside
from bigcircuit.results.evaluation import Dropped, Minimality
from tests.helpers.tiny_models import MULTI_HEAD, TINY, tiny_examples, tiny_model


def minimality(*places, group=1):
    dropped = [
        Dropped(layer, [number], 1, kl_change=None, logit_difference_change=None, necessary=True)
        for layer, number in places
    ]
    return Minimality(len(places), group, tolerance=0.0, dropped=dropped, unnecessary=0, together=None)


@pytest.mark.parametrize("name, settings", [("llama", TINY), ("gpt2", MULTI_HEAD)])
def test_neurons_write_columns_of_the_down_projection(name, settings):
    frozen = tiny_model(name, settings)
    found = look_inside(frozen, {"mlp_neuron": minimality((1, 7))}, tiny_examples(1), None)
    weight = frozen.layers[1].mlp.weight.detach()
    column = weight[:, 7] if name == "llama" else weight[7]  # Conv1D is the other way round
    order = (frozen.head.weight.detach() @ column).argsort(descending=True).tolist()
    assert found["neurons"] == [
        {"name": "L1MLP.7", "raises": list(map(str, order[:6])), "lowers": list(map(str, order[::-1][:6]))}
    ]
    assert found["heads"] == [] and found["tokens"] == []


def test_heads_look_where_the_formula_says():
    """Layer 0 of a Llama by hand: softmax of q k / sqrt(d) with rotary positions."""
    frozen, example = tiny_model("llama", TINY), tiny_examples(1)[0]
    before = frozen.model.config._attn_implementation
    found = look_inside(frozen, {"head": minimality((0, 2), (1, 0))}, [example], None)
    assert frozen.model.config._attn_implementation == before
    assert [head["name"] for head in found["heads"]] == ["L0H2", "L1H0"]
    assert found["tokens"] == list(map(str, example.clean))
    model, config = frozen.model.model, frozen.model.config
    with torch.no_grad():
        x = model.layers[0].input_layernorm(model.embed_tokens(torch.tensor([example.clean])))
        q, k = (getattr(model.layers[0].self_attn, f"{n}_proj")(x)[0] for n in "qk")
        size, tokens = config.head_dim, len(example.clean)
        query, key = (
            q[:, 2 * size : 3 * size],
            k[:, size * (2 // (config.num_attention_heads // config.num_key_value_heads)) :][:, :size],
        )
        angle = torch.outer(torch.arange(tokens).float(), 10000.0 ** (-torch.arange(0, size, 2).float() / size))
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        turned = [one * cos + torch.cat([-one[:, size // 2 :], one[:, : size // 2]], -1) * sin for one in (query, key)]
        wanted = softmax(turned[0][-1] @ turned[1].T / size**0.5, -1)
    assert found["heads"][0]["weights"] == pytest.approx(wanted.tolist(), abs=1e-3)


def test_what_was_not_closed_by_itself_is_not_shown():
    frozen = tiny_model("llama", TINY)
    grouped = {"head": minimality((0, 2), group=2), "mlp_neuron": minimality((0, 2), group=2)}
    assert look_inside(frozen, grouped, tiny_examples(1), None) == {"tokens": [], "heads": [], "neurons": []}
    long = [replace_clean(tiny_examples(1)[0], 65)]
    assert look_inside(frozen, {"head": minimality((0, 2))}, long, None)["heads"] == []
    divided = replace(frozen, engine=object())
    assert look_inside(divided, {"head": minimality((0, 2))}, tiny_examples(1), None) == {}


def replace_clean(example, length):
    return example._replace(clean=tuple(range(3, 3 + length)))
