"""The last layer of a pass over the suffix runs for the columns from the first scored one on, and changes no bit of the logits."""

import pytest
import torch
from transformers import DynamicCache

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.collate import collate
from bigcircuit.forward import last_columns, streams
from bigcircuit.forward.last_columns import count_columns, run_last_columns
from bigcircuit.forward.streams import Streams
from tests.helpers.tiny_models import (
    DENSE_SITES,
    TINY_CASES,
    constant_masks,
    long_examples,
    random_masks,
    tiny_model,
)

MEMBERS = 2


def logits_and_gradients(frozen, batch, checkpointing=False):
    """Return logits, gradients of all masks, and the number of columns of the last attention projection."""
    masks = random_masks(frozen, MEMBERS, len(batch.clean), requires_grad=True)
    columns = []
    hook = frozen.layers[-1].attention.register_forward_pre_hook(lambda _, args: columns.append(args[0].shape[-2]))
    with Streams(frozen, INTERCHANGE, checkpointing) as passes:
        corrupted = passes.record(batch, DENSE_SITES)
        columns.clear()
        logits = passes.masked(batch, masks.__getitem__, MEMBERS, corrupted)
        loss = logits.float().log_softmax(-1)[..., :7].sum()
        gradients = torch.autograd.grad(loss, [mask for layer in masks for mask in layer.values()])
        opened = passes.masked(batch, constant_masks(frozen, 1.0), 1, corrupted)
        plain = passes.reference(batch)
    hook.remove()
    assert torch.equal(opened[0], plain)
    return logits, gradients, columns[0]


@pytest.mark.parametrize("padding", ["left", "aligned"])
@pytest.mark.parametrize(("name", "settings"), TINY_CASES)
def test_the_last_layer_runs_for_scored_columns_alone(name, settings, padding, monkeypatch):
    frozen, batch = tiny_model(name, settings), collate(long_examples(), full=False, padding=padding)
    found, gradients, columns = logits_and_gradients(frozen, batch)
    monkeypatch.setattr(streams, "count_columns", lambda tokens, *_: tokens)
    whole, expected, all_columns = logits_and_gradients(frozen, batch)
    assert (columns, all_columns) == (4, 12)
    assert torch.equal(found, whole)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * other.abs().max().item(), rtol=1e-4)


def test_a_recomputed_last_layer_gives_the_same_gradients():
    settings = next(case.values[1] for case in TINY_CASES if case.values[0] == "llama")
    frozen, batch = tiny_model("llama", settings), collate(long_examples(), full=False, padding="aligned")
    kept, recomputed = (logits_and_gradients(frozen, batch, checkpointing)[1] for checkpointing in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(kept, recomputed, strict=True))


@pytest.mark.parametrize(
    ("tokens", "first_scored", "rows", "columns"),
    [(12, 11, 8, 4), (12, 2, 8, 10), (12, 11, 1, 12), (40, 39, 1, 16), (40, 39, 3, 6), (3, 2, 16, 3)],
)
def test_count_columns(tokens, first_scored, rows, columns):
    assert count_columns(tokens, first_scored, rows) == columns


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": None},
        {"attention_mask": torch.ones(2, 12)},
        {"attention_mask": torch.zeros(2, 1, 12, 12), "bias": torch.zeros(3, 12)},
        {"attention_mask": torch.zeros(2, 1, 12, 12), "state": {"seen": 1}},
    ],
)
def test_the_whole_layer_runs_where_columns_are_not_known(arguments):
    widths = []
    run_last_columns(
        lambda hidden, **_: widths.append(hidden.shape[1]),
        torch.zeros(2, 12, 8),
        {"past_key_values": DynamicCache(), **arguments},
        4,
    )
    assert widths == [12]


def test_a_layer_without_keys_of_its_own_runs_once():
    mask = torch.zeros(2, 1, 12, 12)
    hidden = torch.randn(2, 12, 8)
    found = run_last_columns(
        lambda hidden, **_: hidden + 1, hidden, {"past_key_values": DynamicCache(), "attention_mask": mask}, 4
    )
    assert torch.equal(found, hidden + 1)


def test_arguments_are_cut_to_the_last_columns():
    cosine, mask = torch.randn(2, 12, 4), torch.randn(2, 1, 12, 20)
    cut = last_columns._of_columns(
        {
            "attention_mask": mask,
            "position_embeddings": (cosine, cosine),
            "cache_position": torch.arange(12),
            "other": 3,
        },
        12,
        4,
    )
    assert torch.equal(cut["attention_mask"], mask[:, :, -4:])
    assert torch.equal(cut["position_embeddings"][1], cosine[:, -4:])
    assert (cut["cache_position"].tolist(), cut["other"]) == ([8, 9, 10, 11], 3)
