"""Scores of nodes: coarse nodes from their neurons, and rankings by learned gates."""

import torch

from bigcircuit.attribution.node_scores import aggregate, strengths
from bigcircuit.evaluation.ranking import circuits_of
from bigcircuit.gates.discretise import discretise
from bigcircuit.model.granularity import SITE_WIDTH
from tests.helpers.random_scores import SHAPES, random_scores
from tests.helpers.tiny_models import DENSE_SITES, TINY, tiny_model


def test_coarse_scores_add_up_their_neurons():
    shapes = tiny_model("llama", TINY).shapes
    ones = {site: [torch.ones(3, SITE_WIDTH[site](s)) for s in shapes] for site in DENSE_SITES}
    counts = aggregate(ones, shapes, lambda neurons: neurons.sum(-1))
    assert {name: rows[0].shape[-1] * rows[0][0, 0].item() for name, rows in counts.items()} == {
        "block": 32 + 48, "attention": 32, "mlp": 48, "kv_group": 32, "head": 32, "attention_neuron": 32, "mlp_neuron": 48,
        "mlp_output": 32,
    }  # fmt: skip


def test_strengths_rank_as_discretise_does():
    log_alpha = {name: values for name, values in random_scores(3).items() if name != "mlp_output"}
    scores = strengths(log_alpha, SHAPES)
    for size in range(26):
        asked = discretise(log_alpha, SHAPES, {"total": size})
        (found,) = circuits_of(scores, "neuron", [size], SHAPES)
        for name, mask in asked.items():
            assert torch.equal(mask, found[name]), (name, size)


def test_coarse_nodes_are_as_strong_as_all_their_neurons():
    """A head with one strong neuron ranks below one with two fairly strong ones."""
    log_alpha = {
        "attention_neuron": torch.tensor([[5.0, -4, -4, -4, 1, 1, 1, -1], [2, 2, -3, -3, -5, -5, -5, -5]]),
        "head": torch.tensor([[9.0, 9, 0.5, 9], [9, 9, 9, 9]]),
    }
    found = strengths(log_alpha, SHAPES)
    weakest = torch.tensor([[5.0, -4, -4, -4, 0.5, 0.5, 1, -1], [2, 2, -3, -3, -5, -5, -5, -5]])
    heads = weakest.sigmoid().view(2, 4, 2).sum(-1)
    torch.testing.assert_close(found["head"], heads)
    torch.testing.assert_close(found["attention"], heads.sum(1, keepdim=True))
    assert found["head"][0].argmax() == 2 and found["mlp"].tolist() == [[6], [3]], "without gates all are open"
