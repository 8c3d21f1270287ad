"""Logits of the full model for training, computed once an example and kept outside the accelerator.

Shapes: S scored positions, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigcircuit.streams import Streams
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes, Piece

_CHUNK = 256
"""Examples whose rows the ranks exchange in one message."""


class References:
    """Rows of logits by example, so a shuffled order is safe. The ranks divide the work and all get all rows."""

    def __init__(self, streams: Streams, examples: Sequence[Example], passes: Passes) -> None:
        """Runs the full model once over the examples that training will use."""
        self._rows: dict[int, Tensor] = {}
        for first in range(0, len(examples), _CHUNK):
            self._add(streams, examples[first : first + _CHUNK], passes)

    def _add(self, streams: Streams, examples: Sequence[Example], passes: Passes) -> None:
        mine: dict[int, Tensor] = {}
        for piece in passes.over(examples, full=False):
            passes.ranks.stop_if_asked()
            logits = streams.reference(piece.batch)
            if piece.counts:
                counts = torch.bincount(piece.batch.example_of_score, minlength=len(piece.examples)).tolist()
                mine.update(zip((e.id for e in piece.examples), logits.split(counts), strict=True))
        # In training an example is scored at the positions of its first answer: every rank knows the layout of all rows.
        counts = [len(example.answers[0]) for example in examples]
        rows = logits.new_zeros(sum(counts), logits.shape[-1])
        for example, part in zip(examples, rows.split(counts), strict=True):
            if example.id in mine:
                part.copy_(mine[example.id])
        passes.ranks.sum_([rows])
        self._rows.update(zip((e.id for e in examples), rows.cpu().split(counts), strict=True))

    def __call__(self, piece: Piece) -> Tensor:
        """[S, V] for a pass collated for training; its scored positions are ordered by example."""
        rows = torch.cat([self._rows[example.id] for example in piece.examples])
        return rows.to(piece.batch.clean.device, non_blocking=True)
