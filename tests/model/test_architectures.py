"""Dense architectures: gates open are the plain model bit for bit, gates closed are the model on corrupted prompts."""

import pytest
import torch
from transformers import AutoConfig

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.collate import collate
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.model.sites import architecture_of
from tests.helpers.tiny_models import (
    BLOOM,
    MPT,
    TINY,
    TINY_CASES,
    TINY_CONFIGS,
    constant_masks,
    tiny_examples,
    tiny_model,
)


def plain(model, tokens, batch):
    logits = model(
        input_ids=tokens, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    ).logits
    return logits[batch.score_row, batch.score_position]


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize(("name", "settings"), TINY_CASES)
def test_open_is_plain_and_closed_is_corrupted(name, settings, padding):
    frozen = tiny_model(name, settings)
    batch = collate(tiny_examples(), full=True, padding=padding)
    with torch.no_grad():
        clean, corrupted = plain(frozen.model, batch.clean, batch), plain(frozen.model, batch.corrupted, batch)
        with Streams(frozen, INTERCHANGE) as streams:
            assert torch.equal(streams.masked(batch, constant_masks(frozen, 1.0), 1)[0], clean)
            two = streams.masked(batch, constant_masks(frozen, 0.0, 2), 2)
        assert torch.equal(two[0], two[1])
        assert torch.allclose(two[0], corrupted, atol=1e-5)
        assert not torch.allclose(clean, corrupted, atol=1e-3)
        assert torch.equal(plain(frozen.model, batch.clean, batch), clean), "hooks were left behind"


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("name", "settings"), [("falcon", TINY_CONFIGS["falcon"][-1]), ("mpt", MPT), ("bloom", BLOOM)])
def test_biases_are_divided_by_what_they_are(name, settings, rows):
    """Falcon and BLOOM have a row a head of every prompt, MPT a row a head: with 4 heads and 2 prompts sizes alone mislead."""
    frozen, batch = tiny_model(name, settings), collate(tiny_examples(rows), full=False)
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        clean, corrupted = plain(frozen.model, batch.clean, batch), plain(frozen.model, batch.corrupted, batch)
        assert torch.allclose(streams.masked(batch, constant_masks(frozen, 1.0), 1)[0], clean, atol=1e-5)
        for members in (1, 2, 3):
            closed = streams.masked(batch, constant_masks(frozen, 0.0, members), members)
            assert torch.allclose(closed, corrupted.expand_as(closed), atol=1e-5)


def test_an_unlisted_type_is_guessed_if_that_is_asked():
    config = AutoConfig.for_model("llama", **TINY)
    config.model_type = "llama_of_a_friend"
    with pytest.raises(UserError, match=r"'llama_of_a_friend' is not among the \d+ .* set model.architecture to guess"):
        architecture_of(config)
    assert architecture_of(config, guess=True).kind == "guessed"


def test_a_refusal_names_the_kind():
    with pytest.raises(
        UserError, match="'jetmoe' cannot be masked: it is a mixture of experts whose attention heads are"
    ):
        architecture_of(AutoConfig.for_model("jetmoe"))
