"""Batches: the log-probabilities read from a padded batch equal those computed one continuation at a time."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from bigcircuit.data.collate import Batch, batch_indices, collate, count_rows
from bigcircuit.data.pair import Example
from tests.helpers.examples import EXAMPLES, VOCABULARY, example
from tests.helpers.tiny_models import uneven_examples


@pytest.fixture(scope="module")
def model():
    """Random and tiny; weights large enough that every token and position matters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).double().eval().requires_grad_(False)


def naive(model, prompt, continuation) -> float:
    """Sum of log p of the tokens, each from a forward pass over exactly what is before it."""
    total = 0.0
    for place, token in enumerate(continuation):
        logits = model(torch.tensor([prompt + continuation[:place]]), use_cache=False).logits[0, -1]
        total += logits.log_softmax(-1)[token].item()
    return total


def read(model, batch: Batch, ids) -> torch.Tensor:
    """Log p of every continuation [C], as the layout says."""
    logits = model(ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False).logits
    log_p = logits[batch.score_row, batch.score_position].log_softmax(-1)
    tokens = log_p[batch.token_score, batch.token_id]
    return torch.zeros(len(batch.correct), dtype=tokens.dtype).index_add(0, batch.continuation_of_token, tokens)


def scored_in_training(example: Example, group) -> list[tuple[int, ...]]:
    """Every continuation up to where it leaves the first answer, each once, by walking along both."""
    main, result = example.answers[0], []
    for continuation in group:
        kept = []
        for place, token in enumerate(continuation[: len(main)]):
            kept.append(token)
            if token != main[place]:
                break
        if tuple(kept) not in result:
            result.append(tuple(kept))
    return result


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, len(EXAMPLES)])
def test_log_probabilities_equal_those_of_one_continuation_at_a_time(model, padding, full, size):
    for start in range(0, len(EXAMPLES), size):
        chunk = EXAMPLES[start : start + size]
        batch = collate(chunk, full=full, padding=padding, pad_id=11)
        expected = []
        for number, one in enumerate(chunk):
            for correct, group in ((True, one.answers), (False, one.wrong_answers)):
                scored = group if full else scored_in_training(one, group)
                expected += [(number, correct, one, continuation) for continuation in scored]
        assert batch.example_of_continuation.tolist() == [number for number, *_ in expected]
        assert batch.correct.tolist() == [correct for _, correct, *_ in expected]
        for ids, field in ((batch.clean, "clean"), (batch.corrupted, "corrupted")):
            wanted = torch.tensor([naive(model, getattr(one, field), c) for _, _, one, c in expected]).double()
            torch.testing.assert_close(read(model, batch, ids), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_answer_positions_weigh_one_an_example_and_predict_the_first_answer(padding, full):
    batch = collate(EXAMPLES, full=full, padding=padding)
    weight = torch.zeros(len(EXAMPLES)).index_add(0, batch.example_of_score, batch.kl_weight)
    torch.testing.assert_close(weight, torch.ones(len(EXAMPLES)))
    for number, one in enumerate(EXAMPLES):
        chosen = ((batch.example_of_score == number) & (batch.kl_weight > 0)).nonzero()[:, 0]
        rows, positions = batch.score_row[chosen], batch.score_position[chosen]
        assert len(set(rows.tolist())) == 1
        before = [
            batch.clean[r, : p + 1][batch.attention_mask[r, : p + 1] == 1].tolist()
            for r, p in zip(rows, positions, strict=True)
        ]
        main = one.answers[0]
        assert before == [list(one.clean + main[:place]) for place in range(len(main))]
        torch.testing.assert_close(batch.kl_weight[chosen], torch.full((len(main),), 1 / len(main)))


def test_training_needs_one_row_an_example():
    batch = collate(EXAMPLES, full=False)
    assert batch.example_of_row.tolist() == list(range(len(EXAMPLES)))
    assert len(batch.clean) == len(EXAMPLES) == len(batch.ids)


@pytest.mark.parametrize("full", [True, False])
def test_scores_are_distinct_and_ordered_by_example(full):
    batch = collate(EXAMPLES, full=full)
    places = list(zip(batch.score_row.tolist(), batch.score_position.tolist(), strict=True))
    assert len(set(places)) == len(places)
    assert batch.example_of_score.tolist() == sorted(batch.example_of_score.tolist())
    assert batch.example_of_score.tolist() == batch.example_of_row[batch.score_row].tolist()


@pytest.mark.parametrize("padding", ["right", "left"])
def test_padding(padding):
    batch = collate([EXAMPLES[0], EXAMPLES[2]], full=True, padding=padding, pad_id=12)
    short = [1, 1, 1, 0, 0, 0]
    assert batch.attention_mask.tolist() == [short if padding == "right" else short[::-1], [1] * 6]
    assert batch.clean[0].tolist() == ([1, 2, 3, 12, 12, 12] if padding == "right" else [12, 12, 12, 1, 2, 3])
    assert batch.position_ids[0][batch.attention_mask[0] == 1].tolist() == [0, 1, 2]


tokens = st.integers(0, VOCABULARY - 1)
words = st.lists(tokens, min_size=1, max_size=4).map(tuple)


@st.composite
def random_examples(draw):
    """Whatever encode lets through: no wrong answer begins an answer, or the other way round."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        answers = draw(st.lists(words, min_size=1, max_size=4, unique=True))
        wrong = [
            w
            for w in draw(st.lists(words, min_size=1, max_size=4, unique=True))
            if not any(w[: len(a)] == a or a[: len(w)] == w for a in answers)
        ] or [(VOCABULARY + 1,)]
        found.append(example(number, draw(words), answers, wrong))
    return found


@settings(deadline=None, max_examples=60)
@given(random_examples(), st.booleans(), st.sampled_from(["left", "right"]))
def test_random_layouts(found, full, padding):
    """Every scored token stands after exactly its prompt and what precedes it in its continuation."""
    batch = collate(found, full=full, padding=padding)
    spelled: dict[int, list[int]] = {}
    owner = batch.example_of_continuation.tolist()
    for slot, token, number in zip(
        batch.token_score, batch.token_id, batch.continuation_of_token.tolist(), strict=True
    ):
        row, end = batch.score_row[slot], batch.score_position[slot] + 1
        before = batch.clean[row, :end][batch.attention_mask[row, :end] == 1].tolist()
        assert before == [*found[owner[number]].clean, *spelled.setdefault(number, [])]
        spelled[number].append(token.item())
    expected = []
    for one in found:
        for group in (one.answers, one.wrong_answers):
            expected += group if full else scored_in_training(one, group)
    assert [tuple(spelled[number]) for number in range(len(expected))] == expected


def test_to_a_device_keeps_everything():
    batch = collate(EXAMPLES, full=True)
    moved = batch.to("meta")
    tensors, before = ([value for value in one if isinstance(value, torch.Tensor)] for one in (moved, batch))
    assert [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in before]
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.shared == batch.shared


def test_aligned_rows_differ_first_in_one_column():
    """And each row is what it is under another padding, at its own positions."""
    aligned, right = (collate(uneven_examples(), full=True, padding=padding) for padding in ("aligned", "right"))
    assert aligned.attention_mask is not None and right.attention_mask is not None
    assert aligned.position_ids is not None and right.position_ids is not None
    differs = aligned.clean != aligned.corrupted
    assert differs.int().argmax(1).tolist() == [aligned.shared] * len(differs) and aligned.shared > right.shared
    for row in range(len(differs)):
        ours, theirs = aligned.attention_mask[row].bool(), right.attention_mask[row].bool()
        for name in ("clean", "corrupted", "position_ids"):
            assert torch.equal(getattr(aligned, name)[row][ours], getattr(right, name)[row][theirs])


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_train_order_takes_every_example_once_an_epoch(count, size, seed):
    steps = -(-3 * count // size)
    order = [index for step in range(steps) for index in batch_indices(count, size, step, seed)]
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_train_order_depends_on_step_and_seed_alone():
    torch.manual_seed(1)
    first = batch_indices(100, 8, 37, seed=3)
    state = torch.get_rng_state()
    assert batch_indices(100, 8, 37, seed=3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert batch_indices(100, 8, 37, seed=4) != first
    assert batch_indices(100, 100, 0, seed=3) != batch_indices(100, 100, 1, seed=3)


@settings(deadline=None, max_examples=60)
@given(random_examples(), st.booleans(), st.sampled_from(["left", "right"]))
def test_rows_are_the_longest_of_all_beginnings(found, full, padding):
    """No row could be read off another one, and the main row is the first of its example, for both prompts."""
    batch = collate(found, full=full, padding=padding)
    for place, one in enumerate(found):
        rows = (batch.example_of_row == place).nonzero().flatten()
        for ids, context in ((batch.clean, one.clean), (batch.corrupted, one.corrupted)):
            texts = [tuple(ids[r][batch.attention_mask[r] == 1].tolist()) for r in rows]
            main = one.answers[0][:-1]
            every = {c[:-1] for c in (*one.answers, *one.wrong_answers)} if full else {main}
            longest = {s for s in every if not any(o != s and o[: len(s)] == s for o in every)}
            assert sorted(texts) == sorted(context + s for s in longest)
            assert texts[0][: len(context + main)] == context + main


def test_a_hundred_answers_of_one_token_need_one_row():
    years = [[n] for n in range(100)]
    batch = collate([example(7, [1, 2], years[60:], years[:60], [1, 3])], full=True)
    assert (batch.clean.tolist(), batch.corrupted.tolist()) == ([[1, 2]], [[1, 3]])
    assert (batch.score_position.tolist(), batch.kl_weight.tolist()) == ([1], [1.0])
    assert batch.token_id.tolist() == [*range(60, 100), *range(60)]
    assert batch.correct.tolist() == [True] * 40 + [False] * 60


@pytest.mark.parametrize("order", [([0], [0, 5]), ([0, 5], [0])])
def test_one_right_answer_may_begin_another(model, order):
    """In training the longer one ends with the row, where it is the shorter one again; in evaluation both are whole."""
    one = example(0, [9, 8], order, [[4]])
    for full, answers in ((True, one.answers), (False, scored_in_training(one, one.answers))):
        batch = collate([one], full=full)
        wanted = torch.tensor([naive(model, one.clean, c) for c in (*answers, (4,))], dtype=torch.double)
        torch.testing.assert_close(read(model, batch, batch.clean), wanted, atol=1e-9, rtol=0)


def test_to_a_device_keeps_absent_masks_absent():
    batch = collate(EXAMPLES, full=True)._replace(attention_mask=None, position_ids=None).to("cpu")
    assert batch.attention_mask is None and batch.position_ids is None


@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 5))
def test_train_order_is_one_stream_whatever_the_batch_size(count, size, seed):
    """So a batch may straddle an epoch, or be larger than the data."""
    stream = [batch_indices(count, 1, place, seed)[0] for place in range(3 * size)]
    assert [index for step in range(3) for index in batch_indices(count, size, step, seed)] == stream


def test_thousands_of_answers_are_laid_out_in_no_time():
    """Each row is found by its beginning instead of among all rows."""
    answers = tuple((5 + n % 200, 300 + n // 200) for n in range(3000))
    example = Example(id=0, clean=(1, 2), corrupted=(3, 2), answers=answers, wrong_answers=((250, 1),), source="f:1")
    start = time.process_time()
    assert count_rows(example) == len(collate([example], full=True).clean) == 201
    assert time.process_time() - start < 1
