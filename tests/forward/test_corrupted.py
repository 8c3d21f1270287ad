"""Passes over the suffix, against keys, values and site inputs of the corrupted run, are the two-stream pass."""

import inspect

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.collate import collate
from bigcircuit.forward.streams import Streams
from tests.helpers.tiny_models import (
    DENSE_SITES,
    TINY,
    TINY_CASES,
    constant_masks,
    random_masks,
    tiny_model,
    uneven_examples,
)


def gradients(logits, masks):
    logits.float().log_softmax(-1)[..., :7].sum().backward()
    found = [layer[site].grad.clone() for layer in masks for site in DENSE_SITES]
    for layer in masks:
        for mask in layer.values():
            mask.grad = None
    return found


@pytest.mark.parametrize("padding", ["right", "left", "aligned"])
@pytest.mark.parametrize(("name", "settings"), TINY_CASES)
def test_a_pass_over_the_suffix_is_the_two_stream_pass(name, settings, padding):
    frozen = tiny_model(name, settings)
    batch = collate(uneven_examples(), full=True, padding=padding)
    assert batch.shared >= 4
    masks = random_masks(frozen, 2, len(batch.clean), requires_grad=True)
    with Streams(frozen, INTERCHANGE) as streams:
        whole = streams.masked(batch, masks.__getitem__, 2)
        expected = gradients(whole, masks)
        corrupted = streams.record(batch, DENSE_SITES)
        suffix = streams.masked(batch, masks.__getitem__, 2, corrupted)
        found = gradients(suffix, masks)
        opened = streams.masked(batch, constant_masks(frozen, 1.0), 1, corrupted)
        plain = streams.reference(batch)
    torch.testing.assert_close(suffix, whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(opened[0], plain, atol=1e-6, rtol=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * other.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_recomputed_layer_gives_the_same_gradients(name):
    settings = next(case.values[1] for case in TINY_CASES if case.values[0] == name)
    frozen = tiny_model(name, settings)
    batch = collate(uneven_examples(), full=False)
    masks = random_masks(frozen, 2, len(batch.clean), requires_grad=True)
    found = []
    for checkpointing in (False, True):
        with Streams(frozen, INTERCHANGE, checkpointing) as streams:
            corrupted = streams.record(batch, DENSE_SITES)
            found.append(gradients(streams.masked(batch, masks.__getitem__, 2, corrupted), masks))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_arguments_have_the_names_of_the_model():
    """Old names are still taken by transformers 5.24, with a warning."""
    frozen, batch, given = tiny_model("llama", TINY), collate(uneven_examples(), full=False), []
    frozen.model.register_forward_pre_hook(lambda _, __, kwargs: given.append(set(kwargs)), with_kwargs=True)
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        streams.masked(batch, constant_masks(frozen, 1.0), 1, streams.record(batch, DENSE_SITES))
    assert len(given) >= 2 and set().union(*given) <= set(inspect.signature(frozen.model.forward).parameters)
