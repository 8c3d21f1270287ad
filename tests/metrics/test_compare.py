"""Losses and scores of windows of text: computed in chunks, as whole, by closed form and by transformers."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.saved_bytes import count_saved
from bigcircuit.ablation.ablation import ZERO
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.head import logits_of
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.compare import compare_pass
from bigcircuit.metrics.distinct_circuits import mask_source
from bigcircuit.metrics.score import score, summarise
from tests.helpers.text_windows import random_windows
from tests.helpers.tiny_models import TINY, TINY_CASES, tiny_model


@pytest.mark.parametrize(("name", "settings"), TINY_CASES)
def test_logits_of_some_positions_are_the_models_own(name, settings):
    """Also behind scales and soft caps, and where the base model is called in parts."""
    frozen = tiny_model(name, settings)
    windows = random_windows()
    batch = collate(windows, full=False)
    whole = collate([example._replace(document=-1) for example in windows], full=False)
    with Streams(frozen, ZERO) as streams:
        inputs, expected = streams.reference(batch), streams.reference(whole)
    torch.testing.assert_close(logits_of(frozen, inputs), expected, rtol=1e-5, atol=1e-6)
    assert inputs.shape == (len(batch.score_row), 32)


def whole_terms(reference, logits, batch):
    """KL, cross-entropy and agreement of each window from all logits at once, float64 [P, B]."""
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    each = (
        (p.exp() * (p - q)).sum(-1),
        torch.stack([cross_entropy(one.double(), batch.token_id, reduction="none") for one in logits]),
        (reference.argmax(-1) == logits.argmax(-1)).double(),
    )
    rows = [batch.example_of_score == index for index in range(len(batch.ids))]
    weights = batch.kl_weight.double()
    return [torch.stack([(one * weights)[:, mine].sum(1) for mine in rows], 1) for one in each]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_loss_and_gradient_in_chunks_are_those_of_whole_logits(chunk):
    frozen = tiny_model("gemma2", {**TINY, "sliding_window": 4, "query_pre_attn_scalar": 8})
    frozen.model.double()
    windows = random_windows()
    batch = collate(windows, full=False)._replace(logit_chunk=chunk)
    pairs = collate([example._replace(document=-1) for example in windows], full=False)
    weights = {
        site: torch.rand(2, 1, 32 if site == "attention" else 48, dtype=torch.float64).requires_grad_()
        for site in ("attention", "mlp")
    }
    with Streams(frozen, ZERO) as streams:
        found = compare_pass(streams, batch, lambda _: weights, 2, streams.reference(batch))
        terms = whole_terms(streams.reference(pairs), streams.masked(pairs, lambda _: weights, 2), pairs)
        for mine, expected, tolerance in zip(
            (found.kl, found.cross_entropy, found.agreement), terms, (1e-12, 1e-12, 1e-12), strict=True
        ):
            torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)
        for mine, expected in zip((found.kl, found.cross_entropy), terms[:2], strict=True):
            gradients = torch.autograd.grad(mine.sum(), list(weights.values()), retain_graph=True)
            closed = torch.autograd.grad(expected.sum(), list(weights.values()), retain_graph=True)
            for one, other in zip(gradients, closed, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_no_more_logits_exist_than_a_chunk():
    frozen = tiny_model("llama", TINY)
    seen = []
    frozen.head.register_forward_hook(lambda _, __, output: seen.append(output.numel() // output.shape[-1]))
    batch = collate(random_windows(), full=False)._replace(logit_chunk=6)
    masks = {"mlp": torch.rand(3, 1, 48).requires_grad_()}
    with Streams(frozen, ZERO) as streams:
        compare_pass(streams, batch, lambda _: masks, 3, streams.reference(batch)).kl.sum().backward()
    assert max(seen) <= 6 and sum(seen) > 2 * 3 * len(batch.score_row)


def test_the_backward_pass_keeps_no_logits():
    """Bytes that autograd saves: with chunks they do not grow with the vocabulary, with whole logits they do."""

    def saved(vocabulary, whole):
        frozen = tiny_model("llama", {**TINY, "vocab_size": vocabulary})
        windows = [example._replace(document=-1) for example in random_windows()] if whole else random_windows()
        batch = collate(windows, full=False)
        masks = {"mlp": torch.ones(2, 1, 48).requires_grad_()}
        with Streams(frozen, ZERO) as streams, count_saved(frozen.model) as counted:
            compare_pass(streams, batch, lambda _: masks, 2, streams.reference(batch)).kl.sum()
        return counted.total, 4 * 2 * len(batch.score_row) * vocabulary

    (small, _), (large, logits) = saved(96, False), saved(4096, False)
    assert large == small and logits > large / 2
    (small, _), (large, logits) = saved(96, True), saved(4096, True)
    assert large - small > 0.9 * logits


def test_perplexity_is_that_of_transformers_loss():
    frozen = tiny_model("llama", TINY)
    windows = random_windows([30, 12, 9], window=10, stride=6)
    with Streams(frozen, ZERO) as streams:
        found = score(streams, windows, None, MicroBatches(2, logit_chunk=5))
    total, tokens = 0.0, 0
    for window in windows:
        ids = torch.tensor([window.clean + window.answers[0]])
        labels = ids.clone()
        labels[:, : len(window.clean)] = -100
        loss = frozen.model(input_ids=ids, labels=labels).loss.item()
        total, tokens = total + loss * len(window.answers[0]), tokens + len(window.answers[0])
    summary = summarise(found, found, 0)
    assert summary["perplexity"].mean == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert summary["perplexity"].low < summary["perplexity"].mean < summary["perplexity"].high
    assert found.weights.tolist() == [29, 11, 8] and found["kl"].shape == (1, 3)
    assert found["kl"].abs().max() < 1e-6 and summary["agreement"].mean == 1


def test_scores_do_not_depend_on_batches_or_chunks():
    frozen = tiny_model("llama", TINY)
    generator = torch.Generator().manual_seed(2)
    sizes = {"attention_neuron": 32, "mlp_neuron": 48}
    circuits = [{name: torch.rand(3, n, generator=generator) < 0.7 for name, n in sizes.items()} for _ in range(3)]
    windows = random_windows()
    with Streams(frozen, ZERO) as streams:
        first = score(streams, windows, circuits, MicroBatches(9), full=True)
        other = score(streams, windows, circuits, MicroBatches(2, logit_chunk=3), at_once=2, full=True)
        alone = compare_pass(
            streams, collate(windows[:1], full=True), mask_source(circuits, streams), 3,
            streams.reference(collate(windows[:1], full=True)),
        )  # fmt: skip
    assert list(first) == ["kl", "cross_entropy", "log_likelihood", "agreement"]
    for name in first:
        torch.testing.assert_close(first[name], other[name], rtol=1e-4, atol=1e-5)
    assert alone.preference.shape == (3, 1)
