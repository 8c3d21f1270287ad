"""Rankings of experts against sums over what their router and matrices give, token by token."""

import pytest
import torch

from benchmarks.models import build_tiny
from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.plan import check_methods
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import EXPERT
from bigcircuit.model.sites import find_sites
from tests.helpers.tiny_models import tiny_examples

COUNT = 8


def by_hand(frozen, chosen):
    """Saliency and frequency of every expert, [L, E] each, from the inputs of the experts, one token and expert at a time."""
    norms, routed = torch.zeros(2, len(frozen.layers), COUNT)
    tokens = 0
    for example in chosen:
        prompt = example.clean + example.answers[0][:-1]
        tokens += len(prompt)
        inputs = {}
        handles = [
            layer.sites[EXPERT].register_forward_pre_hook(
                lambda _, args, index=index, inputs=inputs: inputs.update({index: args})
            )
            for index, layer in enumerate(frozen.layers)
            if EXPERT in layer.sites
        ]
        frozen.model(input_ids=torch.tensor([prompt]), use_cache=False)
        for handle in handles:
            handle.remove()
        for index, args in inputs.items():
            module = frozen.layers[index].sites[EXPERT]
            if len(args) == 1:  # every expert sees every token, scaled by its weight
                found = module(args[0]).view(COUNT, len(prompt), -1).norm(dim=-1)
                norms[index] += found.sum(1)
                routed[index] += (args[0].view(COUNT, len(prompt), -1).abs().sum(-1) > 0).sum(1)
                continue
            hidden, ids, weights = args
            hidden = hidden.reshape(-1, hidden.shape[-1])
            for token, place in torch.cartesian_prod(torch.arange(len(ids)), torch.arange(ids.shape[1])).tolist():
                expert = ids[token, place]
                output = module(hidden[token : token + 1], expert.view(1, 1), torch.ones(1, 1))
                norms[index, expert] += weights[token, place] * output.norm()
                routed[index, expert] += 1
    return norms / routed.clamp(min=1), routed / tokens


@pytest.mark.parametrize("name", ["qwen3_moe", "llama4_text", "nemotron_h"])
def test_scores_of_experts(name):
    frozen = find_sites(build_tiny(name))
    expected = by_hand(frozen, tiny_examples(3))
    assert expected[1].max() > expected[1][expected[1] > 0].min(), "experts differ"
    with Streams(frozen, INTERCHANGE) as streams:
        for method, values in zip(("expert_saliency", "router_frequency"), expected, strict=True):
            (found,) = BASELINES[method].draw(streams, tiny_examples(3), MicroBatches(2), 1)
            assert found.keys() == {"expert"}
            torch.testing.assert_close(found["expert"], values, rtol=1e-4, atol=1e-6)


def test_rankings_of_experts_are_for_mixtures():
    shapes = find_sites(build_tiny("llama")).shapes
    check_methods(EvaluationSettings(), shapes)
    check_methods(EvaluationSettings(methods=("learned", "random")), shapes)
    with pytest.raises(UserError, match="--methods: expert_saliency ranks experts, of which the model has none"):
        check_methods(EvaluationSettings(methods=("expert_saliency", "random")), shapes)
    check_methods(EvaluationSettings(methods=("expert_saliency",)), find_sites(build_tiny("qwen3_moe")).shapes)
