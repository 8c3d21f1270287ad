"""Collate examples into padded tensors, with the positions whose logits are needed to score the examples.

A row is a prompt followed by teacher-forced tokens of one answer. The main row of an example has the tokens of its first answer;
the positions that predict that answer are its answer positions. Other continuations are scored on the main row as far as they
agree with the first answer, and on rows of their own beyond.

Shapes: B examples, R rows, T tokens, S scored positions, C continuations, K continuation tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigcircuit.config.text import TextConfig
from bigcircuit.data.pair import Example, TokenIds
from bigcircuit.seeding import mix

DEFAULT_CHUNK = TextConfig().logit_chunk


class Batch(NamedTuple):
    """Model inputs and the positions at which the model's outputs are scored."""

    clean: Tensor
    """int64 [R, T]"""
    corrupted: Tensor
    """int64 [R, T]"""
    attention_mask: Tensor | None
    """int64 [R, T], the same for both prompts; None if nothing is padded."""
    position_ids: Tensor | None
    """int64 [R, T], counted from the first token that is not padding; None for 0, 1, 2, ... in every row."""
    ids: Tensor
    """int64 [B], Example.id."""
    example_of_row: Tensor
    """int64 [R]"""
    score_row: Tensor
    """int64 [S]: logits are needed only at (score_row, score_position); ordered by example."""
    score_position: Tensor
    """int64 [S]"""
    example_of_score: Tensor
    """int64 [S]"""
    kl_weight: Tensor
    """float32 [S]: 1 / number of answer positions on the main row, 0 elsewhere; sums to 1 for each example."""
    token_score: Tensor
    """int64 [K]: index into the scored positions."""
    token_id: Tensor
    """int64 [K]"""
    continuation_of_token: Tensor
    """int64 [K]"""
    example_of_continuation: Tensor
    """int64 [C]"""
    correct: Tensor
    """bool [C]"""
    shared: int
    """Number of first columns in which both prompts are the same in all rows."""
    first_scored: int = 0
    """Column of the first scored position, or one before it."""
    logit_chunk: int | None = None
    """Of windows of general text: positions, of all circuits together, whose logits exist at once. None for pairs, whose few
    logits are computed together."""

    def to(self, device: torch.device | str) -> "Batch":
        """Return a copy on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in self._asdict().items()
            if isinstance(value, Tensor)
        }
        return self._replace(**moved)


class _Layout:
    """Rows and scored positions of the examples added so far."""

    def __init__(self) -> None:
        self.rows: list[
            tuple[TokenIds, TokenIds, int, TokenIds]
        ] = []  # clean context, corrupted context, example, forced tokens
        self.scores: dict[tuple[int, int], int] = {}  # (row, unpadded position) -> index
        self.kl_weight: list[float] = []
        self.tokens: list[tuple[int, int, int]] = []  # scored position, token id, continuation
        self.continuations: list[tuple[int, bool]] = []  # example, correct

    def add(self, index: int, example: Example, full: bool) -> None:
        """Add an example, by its index in the batch. full: see `collate`."""
        main = example.answers[0]
        forced = _forced(example) if full else [main[:-1]]
        row_of: dict[TokenIds, int] = {}  # the first row that begins with these tokens
        for row, tokens in enumerate(forced):
            for end in range(len(tokens) + 1):
                row_of.setdefault(tokens[:end], len(self.rows) + row)
        first = len(self.rows)
        self.rows += [(example.clean, example.corrupted, index, tokens) for tokens in forced]
        start = len(example.clean) - 1
        for offset in range(len(main)):
            self._score(first, start + offset, 1 / len(main))
        for correct, group in ((True, example.answers), (False, example.wrong_answers)):
            scored = group if full else dict.fromkeys(_until_divergence(c, main) for c in group)
            for continuation in scored:
                row = row_of[continuation[:-1]]
                self._continuation(index, correct, continuation, first, row, start, forced)

    def _continuation(
        self, index: int, correct: bool, tokens: TokenIds, first: int, row: int, start: int, forced: Sequence[TokenIds]
    ) -> None:
        number = len(self.continuations)
        self.continuations.append((index, correct))
        for offset, token in enumerate(tokens):
            # Where both rows have the same tokens the main row is used, so that every position is computed and scored once.
            shared = forced[0][:offset] == tokens[:offset]
            slot = self._score(first if shared else row, start + offset, 0.0)
            self.tokens.append((slot, token, number))

    def _score(self, row: int, position: int, weight: float) -> int:
        slot = self.scores.setdefault((row, position), len(self.scores))
        if slot == len(self.kl_weight):
            self.kl_weight.append(weight)
        return slot


def collate(examples: Sequence[Example], *, full: bool, padding: str = "right", pad_id: int = 0) -> Batch:
    """Collate examples into a batch.

    full: score all tokens of every continuation, with extra rows for continuations that differ from the main row. Otherwise
    (training) there is one row per example, R = B, and a continuation is scored up to its first token that differs from the
    main row, or to the end of the main row.
    padding: "left", "right", or "aligned": rows begin where their first differing tokens stand in one column.
    """
    if examples[0].is_window:
        return _windows(examples, pad_id)
    layout = _Layout()
    for index, example in enumerate(examples):
        layout.add(index, example, full)
    lengths = [len(clean) + len(forced) for clean, _, _, forced in layout.rows]
    prefixes = [shared_prefix(before, changed) for before, changed, _, _ in layout.rows]
    shift = {
        "left": [max(lengths) - length for length in lengths],
        "right": [0] * len(lengths),
        "aligned": [max(prefixes) - prefix for prefix in prefixes],
    }[padding]
    width = max(start + length for start, length in zip(shift, lengths, strict=True))
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    clean = torch.full((len(lengths), width), pad_id)
    corrupted = clean.clone()
    for row, (before, changed, _, forced) in enumerate(layout.rows):
        part = slice(shift[row], shift[row] + lengths[row])
        clean[row, part] = torch.tensor(before + forced)
        corrupted[row, part] = torch.tensor(changed + forced)
        mask[row, part] = 1
    rows = [row for row, _ in layout.scores]
    positions = [shift[row] + position for row, position in layout.scores]
    token_scores, token_ids, continuation_of_token = zip(*layout.tokens, strict=True)
    example_of_continuation, correct = zip(*layout.continuations, strict=True)
    example_of_row = [row[2] for row in layout.rows]
    return Batch(
        clean=clean,
        corrupted=corrupted,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        ids=torch.tensor([example.id for example in examples]),
        example_of_row=torch.tensor(example_of_row),
        score_row=torch.tensor(rows),
        score_position=torch.tensor(positions),
        example_of_score=torch.tensor([example_of_row[row] for row in rows]),
        kl_weight=torch.tensor(layout.kl_weight),
        token_score=torch.tensor(token_scores),
        token_id=torch.tensor(token_ids),
        continuation_of_token=torch.tensor(continuation_of_token),
        example_of_continuation=torch.tensor(example_of_continuation),
        correct=torch.tensor(correct),
        shared=min(start + prefix for start, prefix in zip(shift, prefixes, strict=True)),
        first_scored=min(positions),
    )


def _windows(examples: Sequence[Example], pad_id: int) -> Batch:
    """Collate windows of general text: one row each, padded on the right, without the layout of single continuations."""
    context = torch.tensor([len(example.clean) for example in examples])
    scored = torch.tensor([len(example.answers[0]) for example in examples])
    width, count = int((context + scored).max()) - 1, len(examples)
    columns = torch.arange(width)
    mask = (columns < (context + scored - 1).unsqueeze(1)).long()
    tokens = torch.full((count, width), pad_id)
    for row, example in enumerate(examples):
        ids = (example.clean + example.answers[0])[:-1]
        tokens[row, : len(ids)] = torch.tensor(ids)
    rows, is_padded = torch.arange(count), not mask.all()
    owner = rows.repeat_interleave(scored)
    places = torch.cat([torch.arange(n) for n in scored.tolist()])
    return Batch(
        clean=tokens,
        corrupted=tokens,
        attention_mask=mask if is_padded else None,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0) if is_padded else None,
        ids=torch.tensor([example.id for example in examples]),
        example_of_row=rows,
        score_row=owner,
        score_position=places + (context - 1)[owner],
        example_of_score=owner,
        kl_weight=1 / scored[owner].float(),
        token_score=torch.arange(len(owner)),
        token_id=torch.cat([torch.tensor(example.answers[0]) for example in examples]),
        continuation_of_token=owner,
        example_of_continuation=rows,
        correct=torch.ones(count, dtype=torch.bool),
        shared=width - 1,
        logit_chunk=DEFAULT_CHUNK,
    )


def shared_prefix(clean: TokenIds, corrupted: TokenIds) -> int:
    """Count the first tokens that are the same in both prompts; at most all but the last."""
    return next((i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b), len(clean) - 1)


def computed_tokens(example: Example, *, over_suffix: bool) -> tuple[int, int]:
    """Count the tokens of an example that a training pass computes, and those of the prefix that it takes from a store.

    over_suffix: whether the pass runs the tokens behind the shared prefix alone.
    """
    length = len(example.clean) + len(example.answers[0])
    prefix = shared_prefix(example.clean, example.corrupted) if over_suffix else 0
    return length - prefix, prefix


def count_scored_positions(example: Example, *, full: bool) -> int:
    """Count the scored positions of an example. full: see `collate`."""
    if example.is_window:
        return len(example.answers[0])
    layout = _Layout()
    layout.add(0, example, full)
    return len(layout.scores)


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Return the indices of the examples of an update: a new permutation each epoch, depending only on seed and step.

    count: number of examples.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    epochs = {position // count for position in positions}
    orders = {epoch: _permutation(count, seed, epoch) for epoch in epochs}
    return [orders[position // count][position % count] for position in positions]


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(count, generator=generator).tolist()


def count_rows(example: Example) -> int:
    """Count the rows of an example that is scored in full."""
    return 1 if example.is_window else len(_forced(example))


def _forced(example: Example) -> list[TokenIds]:
    """Return the forced tokens of each row of an example: of all continuations without their last tokens those that are no
    prefix of another one, the one that begins with the first answer's first."""
    main = example.answers[0][:-1]
    distinct = dict.fromkeys(c[:-1] for c in (*example.answers, *example.wrong_answers))
    begun = {tokens[:end] for tokens in distinct for end in range(len(tokens))}
    return sorted((tokens for tokens in distinct if tokens not in begun), key=lambda t: t[: len(main)] != main)


def _until_divergence(continuation: TokenIds, main: TokenIds) -> TokenIds:
    """Cut a continuation after its first token that differs from `main`, or to the length of `main`."""
    shared = next((i for i, (a, b) in enumerate(zip(continuation, main, strict=False)) if a != b), None)
    return continuation[: len(main) if shared is None else shared + 1]
