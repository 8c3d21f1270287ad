"""Every listed architecture: gates open are the plain model bit for bit, gates closed are the model on corrupted prompts."""

import pytest
import torch
from transformers import AutoConfig

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.collate import collate
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.model.architectures import ARCHITECTURES
from bigcircuit.model.sites import architecture_of
from tests.helpers.tiny_models import TINY_CASES, TINY_CONFIGS, constant_masks, tiny_examples, tiny_model


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


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_row_is_a_known_model_type(name):
    assert name in TINY_CONFIGS
    assert architecture_of(AutoConfig.for_model(name, **TINY_CONFIGS[name][0])) is ARCHITECTURES[name]


def test_unlisted_architecture_says_how_to_add_it():
    with pytest.raises(UserError, match=r"mamba.*add one row to ARCHITECTURES in bigcircuit/model/architectures.py"):
        architecture_of(AutoConfig.for_model("mamba"))
