"""Masks on every call of a model: the same numbers as the two-stream pass, whatever `generate` does, and no trace afterwards."""

from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache

from benchmarks.models import build_tiny
from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.data.collate import collate
from bigcircuit.errors import UserError
from bigcircuit.forward.applied import AppliedMasks, CorruptedPrompts
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import SITE_WIDTH
from bigcircuit.model.sites import find_sites
from tests.helpers.tiny_models import TINY, TINY_CASES, tiny_examples, tiny_model

NEW = 5
HOW = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0, "use_cache": True}
"""Of generation: the tiny models' own setting is to use no cache."""


def binary_masks(frozen, seed=0, keep=0.7):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            site: (torch.rand(1, 1, width(shape), generator=generator) < keep).float()
            for site, width in SITE_WIDTH.items()
        }
        for shape in frozen.shapes
    ]


def ablation_of(name, frozen, positions=4):
    """An ablation with random tensors where its kind needs some."""
    generator = torch.Generator().manual_seed(7)
    length = positions if KINDS[name].per_position else 1

    def tensors():
        return {
            site: torch.rand(1, len(frozen.shapes), length, max(map(width, frozen.shapes)), generator=generator)
            for site, width in SITE_WIDTH.items()
        }

    return Ablation(name, **{part: tensors() for part in KINDS[name].tensors})


@contextmanager
def applied(frozen, name="interchange", corrupted=None, seed=0):
    prompts = CorruptedPrompts(corrupted) if KINDS[name].needs_corrupted else None
    with AppliedMasks(frozen, binary_masks(frozen, seed), ablation_of(name, frozen), prompts):
        yield frozen.model


@pytest.fixture(scope="module")
def frozen():
    return tiny_model("llama", TINY)


@pytest.fixture(scope="module")
def prompts():
    """Two pairs of prompts of nine tokens, [2, 9] each."""
    clean = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(3))
    corrupted = clean.clone()
    corrupted[:, 2:5] = (clean[:, 2:5] + 11) % 90 + 3
    return clean, corrupted


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_the_two_stream_pass_bit_for_bit(frozen, name, padding):
    batch, masks = collate(tiny_examples(3), full=False, padding=padding), binary_masks(frozen)
    with torch.no_grad(), Streams(frozen, ablation_of(name, frozen)) as streams:
        wanted = streams.masked(batch, masks.__getitem__, 1)[0]
    with torch.no_grad(), applied(frozen, name, batch.corrupted) as model:
        found = model(batch.clean, attention_mask=batch.attention_mask, position_ids=batch.position_ids).logits
    assert torch.equal(found[batch.score_row, batch.score_position], wanted)


def greedy_by_hand(frozen, name, clean, corrupted):
    """Continue token by token, every pass over all tokens of both prompts."""
    masks = binary_masks(frozen)
    for _ in range(NEW):
        prompts = CorruptedPrompts(corrupted) if name == "interchange" else None
        with torch.no_grad(), AppliedMasks(frozen, masks, ablation_of(name, frozen), prompts):
            logits = frozen.model(clean, use_cache=False).logits[:, -1:]
        if (end := frozen.model.config.eos_token_id) is not None:
            logits[..., end] = -float("inf")  # as `min_new_tokens` does
        token = logits.argmax(-1)
        clean, corrupted = torch.cat([clean, token], 1), torch.cat([corrupted, token], 1)
    return clean


@pytest.mark.parametrize("name, settings", TINY_CASES)
def test_generation_with_a_cache_equals_whole_passes_token_by_token(name, settings, prompts):
    frozen, (clean, corrupted) = tiny_model(name, settings), prompts
    for ablation in ("interchange", "mean"):
        with applied(frozen, ablation, corrupted) as model:
            found = model.generate(clean, do_sample=False, **HOW)
        assert torch.equal(found, greedy_by_hand(frozen, ablation, clean, corrupted)), ablation


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon_mamba"])
def test_a_recurrent_cache_is_refused_where_positions_count(name, prompts):
    frozen = find_sites(build_tiny(name))
    clean, corrupted = (part % 57 + 3 for part in prompts)
    with applied(frozen, "mean") as model:
        found = model.generate(clean, do_sample=False, **HOW)
    assert torch.equal(found, greedy_by_hand(frozen, "mean", clean, corrupted))
    for ablation in ("mean_per_position", "noise", "interchange"):
        with applied(frozen, ablation, corrupted) as model:
            with pytest.raises(UserError, match=rf"{ablation} ablation in a model of this kind \(recurrent\)"):
                model.generate(clean, **HOW)
            model.generate(clean, **{**HOW, "use_cache": False})


class OwnCache:
    """A cache of a model's own type, which counts no tokens."""


def test_a_cache_of_another_type_is_not_overlooked(frozen, prompts):
    with (
        applied(frozen, "noise") as model,
        pytest.raises(UserError, match="a cache cannot be used under noise ablation"),
    ):
        model(prompts[0], past_key_values=OwnCache())


def plain(how):
    """The same without what needs a cache."""
    return {key: value for key, value in how.items() if not key.startswith(("cache_", "prompt_"))}


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 4},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=lambda how: "-".join(how),
)
@pytest.mark.parametrize("ablation", ["interchange", "zero", "mean_per_position"])
def test_every_way_to_generate_gives_the_same_with_and_without_a_cache(frozen, prompts, ablation, how):
    clean, corrupted = (part[:1] if "prompt_lookup_num_tokens" in how else part for part in prompts)
    found = []
    for uncached in (False, True):
        torch.manual_seed(5)
        way = {**HOW, **({**plain(how), "use_cache": False} if uncached else how)}
        with applied(frozen, ablation, corrupted) as model:
            found.append(model.generate(clean, **way))
    assert torch.equal(*found)


@pytest.mark.parametrize("ablation", ["interchange", "mean_per_position", "zero"])
def test_left_padding_in_a_batch_changes_nothing(frozen, prompts, ablation):
    (long, short), (long_c, short_c) = (list(part) for part in prompts)
    short, short_c = short[3:], short_c[3:]
    pad = torch.zeros(3, dtype=torch.long)
    clean, corrupted = (torch.stack([a, torch.cat([pad, b])]) for a, b in ((long, short), (long_c, short_c)))
    mask = torch.ones_like(clean)
    mask[1, :3] = 0
    how = {**HOW, "do_sample": False}
    given = {"input_ids": corrupted, "attention_mask": mask}
    with applied(frozen, ablation, given) as model:
        together = model.generate(clean, attention_mask=mask, **how)
    for row, ids, other in ((0, long, long_c), (1, short, short_c)):
        with applied(frozen, ablation, other) as model:
            alone = model.generate(ids.unsqueeze(0), **how)
        assert torch.equal(together[row, -NEW:], alone[0, -NEW:])


def test_open_masks_are_the_model_and_closed_ones_the_corrupted_run(frozen, prompts):
    clean, corrupted = prompts
    for value, tokens in ((1.0, clean), (0.0, corrupted)):
        masks = [{site: torch.full_like(mask, value) for site, mask in one.items()} for one in binary_masks(frozen)]
        with (
            torch.no_grad(),
            AppliedMasks(frozen, masks, ablation_of("interchange", frozen), CorruptedPrompts(corrupted)),
        ):
            found = frozen.model(clean).logits[:, -1]
        with torch.no_grad():
            assert torch.equal(found, frozen.model(tokens).logits[:, -1])


def state_of(model):
    return [
        (module.__dict__.get("forward"), dict(module._forward_hooks), dict(module._forward_pre_hooks))
        for module in model.modules()
    ]


def test_nothing_is_left_behind_also_after_an_error_inside(frozen, prompts):
    before, (clean, corrupted) = state_of(frozen.model), prompts
    with pytest.raises(ZeroDivisionError), applied(frozen, "interchange", corrupted) as model:
        model(clean)
        raise ZeroDivisionError
    assert state_of(frozen.model) == before
    with pytest.raises(IndexError), applied(frozen, "zero") as model:
        model(clean + 1000)  # no such tokens: the pass itself ends in an error
    assert state_of(frozen.model) == before
    with torch.no_grad(), applied(frozen, "zero") as model:
        masked = model(clean).logits
        with pytest.raises(IndexError):
            model(clean + 1000)
        assert torch.equal(model(clean).logits, masked)
    with torch.no_grad():
        assert not torch.equal(frozen.model(clean).logits, masked)


def test_circuits_within_each_other_close_what_any_closes(frozen, prompts):
    clean, _ = prompts
    both = [
        {site: a[site] * b[site] for site in a}
        for a, b in zip(binary_masks(frozen, 0), binary_masks(frozen, 1), strict=True)
    ]
    with torch.no_grad(), AppliedMasks(frozen, both, Ablation("zero")):
        wanted = frozen.model(clean).logits
    with torch.no_grad(), applied(frozen, "zero", seed=0), applied(frozen, "zero", seed=1) as model:
        assert torch.equal(model(clean).logits, wanted)


@pytest.mark.parametrize("first, second", [("interchange", "zero"), ("zero", "interchange")])
def test_interchange_is_refused_within_or_around_another_circuit(frozen, prompts, first, second):
    with (
        applied(frozen, first, prompts[1]),
        pytest.raises(UserError, match="leave the other one first"),
        applied(frozen, second, prompts[1]),
    ):
        pass
    with torch.no_grad(), applied(frozen, second, prompts[1]) as model:  # and afterwards it may
        model(prompts[0])


def padded(prompts, clean_pad, corrupted_pad):
    """The first row begins with so many padding tokens in the clean and in the corrupted prompt."""
    clean, corrupted = (part.clone() for part in prompts)
    mask = torch.ones_like(clean)
    clean[0, :clean_pad], corrupted[0, :corrupted_pad], mask[0, :clean_pad] = 0, 0, 0
    return clean, corrupted, mask


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, clean: m(clean[:, 1:]), "the prompt has 8 tokens and corrupted_ids 9"),
        (lambda m, clean: m(torch.cat([clean, clean[:, :1]], 1)), "the prompt has 10 tokens and corrupted_ids 9"),
        (lambda m, clean: m(clean[:1]), r"1 row\(s\) and corrupted_ids 2"),
        (lambda m, clean: m(clean.repeat(2, 1)[:3]), r"3 row\(s\) and corrupted_ids 2"),
        (lambda m, _: m(inputs_embeds=torch.zeros(2, 9, 32)), "inputs_embeds cannot be used"),
        (lambda m, clean: m(clean, output_attentions=True), "output_attentions cannot be used"),
        (lambda m, _: m(), "is called with input_ids"),
    ],
)
def test_calls_that_cannot_be_right_are_refused(frozen, prompts, call, message):
    with applied(frozen, "interchange", prompts[1]) as model, pytest.raises(UserError, match=message):
        call(model, prompts[0])


@pytest.mark.parametrize("pads", [(1, 2), (2, 1)])
@pytest.mark.parametrize("with_mask", [True, False])
def test_prompts_of_other_lengths_under_padding_are_refused(frozen, prompts, pads, with_mask):
    clean, corrupted, mask = padded(prompts, *pads)
    other = padded(prompts, pads[1], pads[0])[2]
    given = {"input_ids": corrupted, "attention_mask": other} if with_mask else corrupted
    with applied(frozen, "interchange", given) as model, pytest.raises(UserError, match="row 0: .* padded differently"):
        model(clean, attention_mask=mask)


def test_a_cache_from_before_is_refused_and_one_from_inside_goes_on(frozen, prompts):
    clean, corrupted = prompts
    cache = DynamicCache(config=frozen.model.config)
    frozen.model(clean, past_key_values=cache, use_cache=True)
    with applied(frozen, "interchange", corrupted) as model:
        with pytest.raises(UserError, match="begin with an empty cache"):
            model(clean[:, :1], past_key_values=cache)
        output = model(clean, use_cache=True)
        again = model(clean[:, :1], past_key_values=output.past_key_values, use_cache=True)
        wanted = model(torch.cat([clean, clean[:, :1]], 1), use_cache=False)
    torch.testing.assert_close(again.logits[:, -1], wanted.logits[:, -1], atol=1e-5, rtol=1e-4)


def test_token_ids_of_another_kind_are_refused():
    for given in ([[1, 2], [3]], torch.ones(2, 3), torch.ones(2, 2, 2).long(), "text"):
        with pytest.raises(UserError, match="corrupted_ids"):
            CorruptedPrompts(given)


def test_gradients_reach_the_embeddings_through_open_nodes(frozen, prompts):
    embedded = frozen.model.get_input_embeddings()(prompts[0]).detach().requires_grad_()
    with applied(frozen, "zero") as model:
        model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.abs().sum() > 0
