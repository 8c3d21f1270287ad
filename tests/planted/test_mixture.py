"""Planted experts: the wide mixture is the base, the truth is exact and needed, and rankings by the router do not show it."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import score
from bigcircuit.model.sites import find_sites
from bigcircuit.planted import make_mixture, plant_mixture, recovery
from bigcircuit.planted.base import examples_of, knockouts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    mixture = make_mixture(0)
    folder = tmp_path_factory.mktemp("mixture")
    planted = plant_mixture(mixture, folder, 0)
    model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    return mixture, planted, find_sites(model)


def test_logits_are_those_of_the_base(made):
    mixture, planted, frozen = made
    prompts = torch.tensor([row["clean"] for row in mixture.pairs])
    with torch.no_grad():
        wide, base = (m(input_ids=prompts, use_cache=False).logits for m in (frozen.model, mixture.model))
    assert torch.allclose(wide, base, atol=1e-4)
    assert planted.truth["expert"].sum() == 2 * mixture.needed["expert"].sum()


def test_the_truth_is_exact_and_each_of_its_experts_is_needed(made):
    mixture, planted, frozen = made
    examples = examples_of(mixture.pairs[:60])
    with Streams(frozen, INTERCHANGE) as streams:
        kl = score(streams, examples, [planted.truth], MicroBatches(60))["kl"]
    assert kl.max() < 1e-5
    costs = knockouts(frozen, examples, names=["expert"])
    needed = [cost for (_, layer, node), cost in costs.items() if planted.truth["expert"][layer, node]]
    assert mixture.least >= 0.1 and min(needed) > 0.005


def test_experts_that_are_not_needed_are_chosen_often(made):
    """How much they write is not tested: it depends on the course of the training, which depends on the processor."""
    mixture, planted, frozen = made
    truth = planted.truth["expert"]
    assert 4 <= truth.sum() < 0.8 * truth.numel()
    with Streams(frozen, INTERCHANGE) as streams:
        (scores,) = BASELINES["router_frequency"].draw(streams, examples_of(mixture.pairs[:100]), MicroBatches(50), 1)
    assert scores["expert"][~truth].max() > scores["expert"][truth].median()
    assert recovery(scores, planted.truth, "expert", frozen.shapes).precision < 0.95
