"""Logits of the full model, computed once an example and kept outside the accelerator.

Shapes: S scored positions, V vocabulary.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.data.collate import count_scored_positions
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.corrupted_store import CorruptedStore
from bigcircuit.forward.finite import check_reference
from bigcircuit.forward.kept_logits import KeptLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.runtime.progress import Phase
from bigcircuit.seeding import mix

_CHUNK = 256
"""Examples whose logits the ranks exchange in one message."""
_LABELS_KEY = 0x1ABE1
"""Keeps the choice of random labels apart from other uses of the seed."""


class ReferenceLogits:
    """Logits of the full model by example id, so the order of examples is free. Ranks divide the work and all get all logits."""

    def __init__(
        self,
        streams: Streams,
        examples: Sequence[Example],
        micro_batches: MicroBatches,
        *,
        full: bool = False,
        shuffled: int | None = None,
        kept: KeptLogits | None = None,
    ) -> None:
        """Run the full model once over the examples. Raises UserError if its logits are not finite.

        full: how examples are collated, see `collate`.

        shuffled: a seed by which each example gets the logits of another one instead, see `partners`. kept: where the logits are
        read from, if they were computed before, and written to.
        """
        self._full = full
        self._rows: dict[int, Tensor] = {}
        self._whose = {} if shuffled is None else partners(examples, full, shuffled)
        counts = [count_scored_positions(example, full=full) for example in examples]
        found = None if kept is None else kept.load(examples, micro_batches, full, sum(counts))
        if found is not None:
            self._rows = dict(zip((e.id for e in examples), found.split(counts), strict=True))
            return
        started = time.monotonic()
        chunks = [examples[first : first + _CHUNK] for first in range(0, len(examples), _CHUNK)]
        passes = sum(micro_batches.count(len(chunk)) for chunk in chunks)
        with micro_batches.progress.phase("reference logits", passes) as phase:
            for chunk in chunks:
                self._add(streams, chunk, micro_batches, phase)
        if kept is not None:
            rows = [self._rows[example.id] for example in examples]
            kept.save(examples, micro_batches, full, rows, time.monotonic() - started)

    def _add(self, streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches, phase: Phase) -> None:
        mine: dict[int, Tensor] = {}
        for micro_batch in micro_batches.iterate(examples, full=self._full):
            micro_batches.ranks.stop_if_requested()
            logits = streams.reference(micro_batch.batch)
            check_reference(streams.frozen, logits, micro_batch)
            if micro_batch.is_counted:
                counts = torch.bincount(
                    micro_batch.batch.example_of_score, minlength=len(micro_batch.examples)
                ).tolist()
                mine.update(zip((e.id for e in micro_batch.examples), logits.split(counts), strict=True))
            phase.advance()
        counts = [
            count_scored_positions(example, full=self._full) for example in examples
        ]  # every rank has all layouts
        rows = logits.new_zeros(sum(counts), logits.shape[-1])
        for example, part in zip(examples, rows.split(counts), strict=True):
            if example.id in mine:
                part.copy_(mine[example.id])
        micro_batches.ranks.all_reduce([rows])
        self._rows.update(zip((e.id for e in examples), rows.cpu().split(counts), strict=True))

    def __call__(self, micro_batch: MicroBatch) -> Tensor:
        """Look up the logits of a micro-batch that is collated in the same way, [S, V], ordered by example."""
        return self._look_up(micro_batch, self._whose)

    def own(self, micro_batch: MicroBatch) -> Tensor:
        """Look up the logits as `__call__` does, but those of each example itself where they are shuffled."""
        return self._look_up(micro_batch, {})

    def _look_up(self, micro_batch: MicroBatch, whose: Mapping[int, int]) -> Tensor:
        rows = torch.cat([self._rows[whose.get(example.id, example.id)] for example in micro_batch.examples])
        return rows.to(micro_batch.batch.clean.device, non_blocking=True)


class Targets(NamedTuple):
    """Examples with the logits that circuits are to predict."""

    examples: Sequence[Example]
    references: ReferenceLogits
    """Logits [S, V] for a pass."""
    full: bool
    """How the micro-batches are collated, see `collate`."""
    store: CorruptedStore | None = None
    """Activations of the corrupted run of the examples; None where passes run the corrupted prompts beside."""


def partners(examples: Sequence[Example], full: bool, seed: int) -> dict[int, int]:
    """Choose for each example a partner with as many scored positions, by id: a random cycle through all of them.

    An example that is alone with its number of positions has no partner and is missing.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for example in examples:
        key = len(example.answers[0]), count_scored_positions(example, full=full)
        alike.setdefault(key, []).append(example.id)
    found: dict[int, int] = {}
    for key, ids in alike.items():
        generator = torch.Generator().manual_seed(mix(seed, _LABELS_KEY, *key))
        order = [ids[index] for index in torch.randperm(len(ids), generator=generator).tolist()]
        if len(order) > 1:
            found |= dict(zip(order, [*order[1:], order[0]], strict=True))
    return found
