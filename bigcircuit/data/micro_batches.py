"""Divide examples into the passes of every rank.

The examples are sorted by length and cut into micro-batches, so that little is padded, and the micro-batches are dealt to
the ranks. What is computed in a micro-batch does not depend on who computes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bigcircuit.config.schema import Config
from bigcircuit.data.collate import Batch, collate
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError


class MicroBatch(NamedTuple):
    """One pass of this rank."""

    examples: list[Example]
    batch: Batch
    counts: bool
    """False for a pass made only because other ranks make one: ranks that share weights gather them together."""


@dataclass(frozen=True)
class MicroBatches:
    """How examples become passes: `size` of them at most go through the model at once on one rank."""

    size: int
    ranks: Ranks = Ranks()
    padding: str = "right"

    @classmethod
    def of(cls, config: Config, ranks: Ranks) -> "MicroBatches":
        """The passes of a run. Raises UserError if there is not a pair of the batch for every rank."""
        train = config.train
        if train.batch_size < ranks.size:
            raise UserError(f"train.batch_size is {train.batch_size} but there are {ranks.size} ranks; raise it")
        share = -(-train.batch_size // ranks.size)
        return cls(min(train.micro_batch_size, share), ranks, config.task.padding)

    def over(self, examples: Sequence[Example], *, full: bool) -> Iterator[MicroBatch]:
        """This rank's passes over `examples`; all ranks get the same number. full: see `collate`."""
        order = sorted(examples, key=lambda e: (len(e.clean) + len(e.answers[0]), e.id))
        pieces = [order[start : start + self.size] for start in range(0, len(order), self.size)]
        for first in range(0, len(pieces), self.ranks.size):
            mine = first + self.ranks.rank
            counts = mine < len(pieces)
            chosen = pieces[mine if counts else first]
            yield MicroBatch(chosen, collate(chosen, full=full, padding=self.padding).to(self.ranks.device), counts)
