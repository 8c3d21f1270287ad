"""Scores of the literature on pruning against the same formulas in a few lines, from what transformers alone computes."""

import pytest
import torch

from benchmarks.models import build_tiny
from bigcircuit.ablation.ablation import ZERO
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.plan import check_methods
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import ATTENTION, MLP
from bigcircuit.model.sites import find_sites
from tests.helpers.text_windows import random_windows
from tests.helpers.tiny_models import GPT2_NAMES, MULTI_HEAD, TINY, TOKEN_IDS, tiny_examples, tiny_model

MODELS = {
    "llama": TINY,
    "gpt2": {**GPT2_NAMES, **TOKEN_IDS},
    "gpt_neox": {**MULTI_HEAD, "use_parallel_residual": True},
}
"""Gated MLPs, MLPs without a gate and transposed weights, and layers whose sub-layers stand side by side."""


@pytest.fixture(params=MODELS)
def frozen(request):
    return tiny_model(request.param, MODELS[request.param])


def by_layer(frozen, examples, wanted):
    """Inputs of projections, or inputs and outputs of layers, of single prompts through transformers alone, [tokens, width]."""
    seen = {index: [] for index in range(len(frozen.layers))}
    handles = [
        (layer.module if wanted == "layer" else layer.sites[wanted]).register_forward_hook(
            lambda _, args, output, index=index: seen[index].append((args[0], output)), with_kwargs=False
        )
        for index, layer in enumerate(frozen.layers)
    ]
    with torch.no_grad():
        for example in examples:
            frozen.model(input_ids=torch.tensor([example.clean + example.answers[0][:-1]]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [tuple(torch.cat([one[part][0].double() for one in pairs]) for part in (0, 1)) for pairs in seen.values()]


def test_fluctuation_and_weights_against_flap_by_hand(frozen):
    chosen = tiny_examples(3)
    with Streams(frozen, ZERO) as streams:
        found, plain = (
            BASELINES[n].score(streams, chosen, MicroBatches(2)) for n in ("fluctuation", "weight_magnitude")
        )
    for site, name in ((ATTENTION, "attention_neuron"), (MLP, "mlp_neuron")):
        for index, (inputs, _) in enumerate(by_layer(frozen, chosen, site)):
            weight = frozen.layers[index].sites[site].weight.double()
            squares = (
                (weight.T if type(frozen.layers[index].sites[site]).__name__ == "Conv1D" else weight).square().sum(0)
            )
            scores = inputs.var(0, correction=0) * squares
            expected = (scores - scores.mean()) / scores.std()
            torch.testing.assert_close(found[name][index].double(), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(plain[name][index].double(), squares.sqrt(), rtol=1e-5, atol=1e-6)


def test_block_influence_is_one_minus_the_cosine_of_input_and_output(frozen):
    chosen = tiny_examples(3)
    with Streams(frozen, ZERO) as streams:
        found = BASELINES["block_influence"].score(streams, chosen, MicroBatches(2))
    for index, (before, after) in enumerate(by_layer(frozen, chosen, "layer")):
        expected = (1 - torch.cosine_similarity(before, after, dim=-1)).mean().item()
        assert found["block"][index].item() == pytest.approx(expected, abs=1e-6)
        assert set(found["mlp_neuron"][index].tolist()) == {found["block"][index].item()}


def test_taylor_is_the_gradient_of_the_weights_times_the_weights_without_a_gate():
    """LLM-Pruner's definition by autograd through transformers, on text; biases behind the weights do not count."""
    frozen = tiny_model("gpt2", MODELS["gpt2"])
    windows = random_windows()
    with Streams(frozen, ZERO) as streams:
        found = BASELINES["taylor"].score(streams, windows, MicroBatches(2))
    weights = [layer.sites[MLP].weight.requires_grad_() for layer in frozen.layers]
    loss = torch.zeros(())
    for window in windows:
        ids = window.clean + window.answers[0]
        logits = frozen.model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        targets = torch.tensor(window.answers[0])
        loss = loss + torch.nn.functional.cross_entropy(logits[len(window.clean) - 1 :], targets) / len(windows)
    for index, (weight, gradient) in enumerate(zip(weights, torch.autograd.grad(loss, weights), strict=True)):
        expected = (weight * gradient).sum(1).abs().detach()
        torch.testing.assert_close(found["mlp_neuron"][index], expected, rtol=1e-3, atol=1e-6)


def test_what_is_not_defined_for_experts_is_refused_on_a_mixture():
    frozen = find_sites(build_tiny("qwen3_moe"))
    for name in ("weight_magnitude", "fluctuation"):
        with pytest.raises(UserError, match=f"{name} is not defined for experts, which the model has; leave it out"):
            check_methods(EvaluationSettings(methods=(name,)), frozen.shapes)
        assert not BASELINES[name].refusal(tiny_model("llama", TINY).shapes)
    check_methods(EvaluationSettings(methods=("all",)), frozen.shapes)
    with Streams(frozen, ZERO) as streams:
        for name in ("taylor", "block_influence"):
            scores = BASELINES[name].score(streams, random_windows(), MicroBatches(2))
            assert scores["expert"].isfinite().all() and scores["expert"].any(), name
