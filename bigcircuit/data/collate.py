"""Pad examples into tensors and lay out which logits are needed to score them.

A row is a prompt followed by teacher-forced tokens of one answer. The main row of an example follows its first answer; the
positions that predict that answer are its answer positions. Other continuations use the main row as far as they agree with
it, and rows of their own beyond.

Shapes: B examples, R rows, T tokens, S scored positions, C continuations, K continuation tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.data.pair import Example
from bigcircuit.seeding import mix

Ids = tuple[int, ...]


class Batch(NamedTuple):
    """Model inputs and the layout of the scores."""

    clean: Tensor
    """int64 [R, T]"""
    corrupted: Tensor
    """int64 [R, T]"""
    attention_mask: Tensor | None
    """int64 [R, T], the same for both prompts; None where nothing is padded."""
    position_ids: Tensor | None
    """int64 [R, T], counted from the first token that is not padding; None for 0, 1, 2, ... in every row."""
    ids: Tensor
    """int64 [B], Example.id."""
    example_of_row: Tensor
    """int64 [R]"""
    score_row: Tensor
    """int64 [S]: logits are needed at (score_row, score_position) only; ordered by example."""
    score_position: Tensor
    """int64 [S]"""
    example_of_score: Tensor
    """int64 [S]"""
    kl_weight: Tensor
    """float32 [S]: 1 / number of answer positions on the main row, 0 elsewhere; sums to 1 an example."""
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

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(*(None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self))


class _Layout:
    """Collects rows and scored positions while examples are added one by one."""

    def __init__(self) -> None:
        self.rows: list[tuple[Ids, Ids, int, Ids]] = []  # clean context, corrupted context, example, forced tokens
        self.scores: dict[tuple[int, int], int] = {}  # (row, unpadded position) -> index
        self.kl_weight: list[float] = []
        self.tokens: list[tuple[int, int, int]] = []  # scored position, token id, continuation
        self.continuations: list[tuple[int, bool]] = []  # example, correct

    def add(self, index: int, example: Example, full: bool) -> None:
        main = example.answers[0]
        forced = (
            _maximal([c[:-1] for c in (*example.answers, *example.wrong_answers)], main[:-1]) if full else [main[:-1]]
        )
        first = len(self.rows)
        self.rows += [(example.clean, example.corrupted, index, tokens) for tokens in forced]
        start = len(example.clean) - 1
        for offset in range(len(main)):
            self._score(first, start + offset, 1 / len(main))
        for correct, group in ((True, example.answers), (False, example.wrong_answers)):
            scored = group if full else dict.fromkeys(_until_divergence(c, main) for c in group)
            for continuation in scored:
                row = first + next(i for i, t in enumerate(forced) if t[: len(continuation) - 1] == continuation[:-1])
                self._continuation(index, correct, continuation, first, row, start, forced)

    def _continuation(
        self, index: int, correct: bool, tokens: Ids, first: int, row: int, start: int, forced: Sequence[Ids]
    ) -> None:
        number = len(self.continuations)
        self.continuations.append((index, correct))
        for offset, token in enumerate(tokens):
            # Where the rows still agree the main row's logits serve, so that a position is computed and scored once.
            shared = forced[0][:offset] == tokens[:offset]
            slot = self._score(first if shared else row, start + offset, 0.0)
            self.tokens.append((slot, token, number))

    def _score(self, row: int, position: int, weight: float) -> int:
        slot = self.scores.setdefault((row, position), len(self.scores))
        if slot == len(self.kl_weight):
            self.kl_weight.append(weight)
        return slot


def collate(examples: Sequence[Example], *, full: bool, padding: str = "right", pad_id: int = 0) -> Batch:
    """Lay out a batch.

    full: score every continuation as a whole, with extra rows where answers leave the main row. Otherwise (training) one
    row an example, R = B, and a continuation that leaves it is scored up to its first differing token, or to the row's end
    if it only goes on where the first answer stops.
    """
    layout = _Layout()
    for index, example in enumerate(examples):
        layout.add(index, example, full)
    lengths = [len(clean) + len(forced) for clean, _, _, forced in layout.rows]
    width = max(lengths)
    shift = [width - length if padding == "left" else 0 for length in lengths]
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    clean = torch.full((len(lengths), width), pad_id)
    corrupted = clean.clone()
    for row, (before, changed, _, forced) in enumerate(layout.rows):
        part = slice(shift[row], shift[row] + lengths[row])
        clean[row, part] = torch.tensor(before + forced)
        corrupted[row, part] = torch.tensor(changed + forced)
        mask[row, part] = 1
    rows, positions = zip(*layout.scores, strict=True)
    slots, token_ids, owners = zip(*layout.tokens, strict=True)
    owner, correct = zip(*layout.continuations, strict=True)
    example_of_row = [row[2] for row in layout.rows]
    return Batch(
        clean,
        corrupted,
        mask,
        (mask.cumsum(1) - 1).clamp(min=0),
        torch.tensor([example.id for example in examples]),
        torch.tensor(example_of_row),
        torch.tensor(rows),
        torch.tensor([shift[row] + position for row, position in layout.scores]),
        torch.tensor([example_of_row[row] for row in rows]),
        torch.tensor(layout.kl_weight),
        torch.tensor(slots),
        torch.tensor(token_ids),
        torch.tensor(owners),
        torch.tensor(owner),
        torch.tensor(correct),
    )


def scored_positions(example: Example, *, full: bool) -> int:
    """How many positions of an example are scored when it is collated."""
    layout = _Layout()
    layout.add(0, example, full)
    return len(layout.scores)


def train_order(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of the examples of one update: a new permutation every epoch, and a function of the step alone."""
    wanted = range(step * batch_size, (step + 1) * batch_size)
    epochs = {place // count for place in wanted}
    orders = {epoch: _permutation(count, seed, epoch) for epoch in epochs}
    return [orders[place // count][place % count] for place in wanted]


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(count, generator=generator).tolist()


def _maximal(sequences: Sequence[Ids], main: Ids) -> list[Ids]:
    """The sequences that no other one continues, the one that continues `main` first."""
    distinct = list(dict.fromkeys([main, *sequences]))
    longest = [s for s in distinct if not any(o != s and o[: len(s)] == s for o in distinct)]
    return sorted(longest, key=lambda s: s[: len(main)] != main)


def _until_divergence(continuation: Ids, main: Ids) -> Ids:
    shared = next((i for i, (a, b) in enumerate(zip(continuation, main, strict=False)) if a != b), None)
    return continuation[: len(main) if shared is None else shared + 1]
