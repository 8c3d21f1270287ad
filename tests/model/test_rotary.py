"""Frequencies that depend on the longest row of a pass: the numbers of a pair never depend on who shares its passes."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.schema import TaskConfig
from bigcircuit.data.collate import collate
from bigcircuit.data.dataset import load_task
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.model.rotary import frequency_switches
from tests.helpers.pair_files import write_pairs
from tests.helpers.tiny_models import TINY, TINY_CONFIGS, constant_masks, tiny_model

SWITCH = 16
LONGROPE = {
    **TINY,
    "original_max_position_embeddings": SWITCH,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": SWITCH,
    },
}
DYNAMIC = {**TINY, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}


def pair_of(length: int) -> dict:
    """A pair whose prompts have so many tokens, unlike those of other lengths."""
    clean = [3 + (7 * place + length) % 90 for place in range(length)]
    return {"clean": clean, "corrupted": [94, *clean[1:]], "answers": [5], "wrong_answers": [6]}


def examples(tmp_path, frozen, lengths, **task):
    path = write_pairs(tmp_path / "pairs.jsonl", map(pair_of, lengths))
    splits = load_task(TaskConfig(name="pairs", path=path, **task), None, frozen.model.config).splits
    return sorted((example for part in splits.values() for example in part), key=lambda e: e.id)


def logits(frozen, chosen):
    """Of full model and half-open circuit, [2, B, V]."""
    batch = collate(chosen, full=True)
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        return torch.stack([streams.reference(batch), streams.masked(batch, constant_masks(frozen, 0.5), 1)[0]])


@pytest.mark.parametrize("lengths", [(5, 9, 12, SWITCH), (SWITCH + 1, 20, 40)])
def test_logits_of_longrope_do_not_depend_on_who_shares_the_pass(tmp_path, lengths):
    frozen = tiny_model("phi3", LONGROPE)
    chosen = examples(tmp_path, frozen, lengths)
    together = logits(frozen, chosen)
    for index, example in enumerate(chosen):
        torch.testing.assert_close(logits(frozen, [example])[:, 0], together[:, index], rtol=1e-4, atol=1e-4)


def test_pairs_on_both_sides_would_change_each_other_and_are_refused(tmp_path):
    frozen = tiny_model("phi3", LONGROPE)
    (short, *_), (long, *_) = (examples(tmp_path, frozen, lengths) for lengths in ((9, 10), (20, 21)))
    assert (logits(frozen, [short])[:, 0] - logits(frozen, [short, long])[:, 0]).abs().max() > 0.01
    with pytest.raises(
        UserError, match=r"jsonl:2: 17 tokens .*jsonl:1 has 9; .*task.max_tokens 16 and task.bad_pairs drop"
    ):
        examples(tmp_path, frozen, (9, 17, 10))
    kept = examples(tmp_path, frozen, (9, 17, 10), max_tokens=SWITCH, bad_pairs="drop")
    assert [len(example.clean) for example in kept] == [9, 10]


def test_answers_of_a_pair_on_both_sides_are_refused(tmp_path):
    row = {**pair_of(SWITCH), "wrong_answers": [[6], [7, 8]]}
    path = write_pairs(tmp_path / "pairs.jsonl", [row])
    with pytest.raises(UserError, match=r"jsonl:1: 17 tokens .*jsonl:1 has 16; "):
        load_task(TaskConfig(name="pairs", path=path), None, tiny_model("phi3", LONGROPE).model.config)


def test_dynamic_frequencies_never_change_because_no_pair_is_longer_than_the_model_was_trained_for(tmp_path):
    frozen = tiny_model("llama", DYNAMIC)
    chosen = examples(tmp_path, frozen, (9, 30, 64))
    together = logits(frozen, chosen)
    for index, example in enumerate(chosen):
        torch.testing.assert_close(logits(frozen, [example])[:, 0], together[:, index], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="65 tokens with the answer, more than 64"):
        examples(tmp_path, frozen, (9, 65))


def test_every_kind_of_layer_is_asked():
    kinds = {
        "full": {"rope_type": "longrope", "original_max_position_embeddings": 8},
        "sliding": {"rope_type": "default"},
    }
    assert frequency_switches(SimpleNamespace(rope_parameters=kinds)) == (8,)
    assert frequency_switches(SimpleNamespace()) == ()
    other = {**kinds, "sliding": {"rope_type": "longrope", "original_max_position_embeddings": 4}}
    assert all(one < two for one, two in pairwise(frequency_switches(SimpleNamespace(rope_parameters=other))))


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_the_listed_architectures_have_none_by_default(name):
    from transformers import AutoConfig

    for settings in TINY_CONFIGS[name]:
        assert frequency_switches(AutoConfig.for_model(name, **settings)) == ()
