"""NaN and infinite numbers of the model itself are blamed on the model."""

import pytest
import torch

from bigcircuit.errors import UserError
from tests.helpers.broken_models import changed_model, tensors
from tests.helpers.pair_files import write_pairs
from tests.helpers.short_runs import run
from tests.helpers.tiny_models import TINY_CONFIGS, tiny_model

NORM = "model.layers.2.mlp.down_proj.weight"


def poisoned(folder, name, place):
    """Copy the embedded model with a NaN at one place of one tensor; returns the folder as a config takes it."""

    def edit(found):
        found[name][place] = torch.nan

    return changed_model(folder, tensors(edit)).path


@pytest.mark.parametrize("ablation", ["interchange", "mean"])
def test_a_nan_in_a_weight_is_blamed_on_the_weight(tmp_path, ablation):
    path = poisoned(tmp_path / "model", NORM, (3, 5))
    with pytest.raises(UserError, match=rf": {NORM} of the model holds NaN or infinite numbers; give other weights"):
        run(tmp_path / "run", model__path=path, ablation__kind=ablation)


def test_a_nan_that_only_corrupted_prompts_meet(tmp_path):
    """The embedding of a token that no clean prompt has; the vocabulary projection has weights of its own."""
    tiny_model("llama", TINY_CONFIGS["llama"][0]).model.save_pretrained(tmp_path / "model")

    def edit(found):
        found["model.embed_tokens.weight"][8] = torch.nan

    tensors(edit)(tmp_path / "model")
    rows = (
        {"clean": [5, 6, 20 + i], "corrupted": [5, 8, 20 + i], "answers": [[9]], "wrong_answers": [[10]]}
        for i in range(12)
    )
    pairs = write_pairs(tmp_path / "pairs.jsonl", rows)
    message = r"on the corrupted prompt of .*pairs.jsonl.*: model.embed_tokens.weight of the model holds NaN"
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", model__path=str(tmp_path / "model"), task__name="pairs", task__path=pairs, target__total=50,
            train__both_ways=False, train__batch_size=4)  # fmt: skip


def test_float16_that_overflows(tmp_path):
    path = changed_model(tmp_path / "model", tensors(lambda w: w[NORM].mul_(3e4))).path
    with pytest.raises(UserError, match="float16; set model.dtype to bfloat16 or float32"):
        run(tmp_path / "run", model__path=path, model__dtype="float16")
