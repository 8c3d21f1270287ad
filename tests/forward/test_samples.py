"""Text that a model writes: by its own probabilities, whatever its checkpoint asks of `generate`."""

import pytest
import torch

from bigcircuit.config.load import load
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.forward.samples import sample_documents
from tests.helpers.tiny_models import TINY, tiny_model


def written(frozen):
    return sample_documents(frozen, 1, 40, 12, 0, MicroBatches.of(load(None), Ranks()))


def test_settings_of_the_checkpoint_change_no_sample():
    frozen = tiny_model("llama", TINY)
    with torch.no_grad():
        frozen.model.lm_head.weight.mul_(4)  # few tokens are likely, so that they come again
    plain = written(frozen)
    for name, value in (("repetition_penalty", 9.0), ("no_repeat_ngram_size", 1), ("top_k", 1), ("temperature", 0.1)):
        setattr(frozen.model.generation_config, name, value)
        assert written(frozen) == plain, name
    assert any(len(set(document)) < len(document) for document in plain)


def test_a_model_that_cannot_write_is_one_line():
    frozen = tiny_model("llama", TINY)
    with torch.no_grad():
        frozen.model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"the model cannot write samples \(RuntimeError: .*; give other weights"):
        written(frozen)
