"""The task of small base models."""

import random

from bigcircuit.planted.base import _latin_square, examples_of, lookup_task, pairs_of


def test_every_answer_can_be_looked_up_and_no_prompt_is_in_two_splits():
    rng = random.Random(0)
    square = _latin_square(rng)
    assert all(sorted(line) == list(range(5)) for line in [*square, *zip(*square, strict=True)])
    lookup = lookup_task(rng)
    assert lookup.prompts.shape == (125, 4) and lookup.answers.bincount().tolist() == [25] * 5
    answers = {
        tuple(prompt): int(answer) for prompt, answer in zip(lookup.prompts.tolist(), lookup.answers, strict=True)
    }
    rows = pairs_of(lookup, rng)
    splits: dict[str, set[tuple[int, ...]]] = {}
    for row, example in zip(rows, examples_of(rows), strict=True):
        assert example.clean == tuple(row["clean"]) and example.corrupted == tuple(row["corrupted"])
        assert example.answers == ((answers[example.clean],),) != example.wrong_answers
        assert example.wrong_answers == ((answers[example.corrupted],),)
        splits.setdefault(row["split"], set()).update([example.clean, example.corrupted])
    assert sum(map(len, splits.values())) == len(set.union(*splits.values()))
