"""Divide examples into micro-batches, and the micro-batches among the ranks.

The examples are sorted by the length that is computed and cut into micro-batches, so that little is padded. A micro-batch gives
the same numbers on every rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from bigcircuit.config.schema import Config
from bigcircuit.data.collate import DEFAULT_CHUNK, Batch, collate, computed_tokens
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.runtime.progress import ProgressDisplay


class MicroBatch(NamedTuple):
    """Examples that go through the model together on this rank."""

    examples: list[Example]
    batch: Batch
    is_counted: bool
    """Whether the results of this rank's pass are added to sums. False for a repeated micro-batch: ranks that divide the
    weights gather them together, so all ranks make the same number of passes."""


@dataclass(frozen=True)
class MicroBatches:
    """How examples are divided into micro-batches, and where the passes over them are shown.

    max_examples: the most examples that go through the model together on one rank.
    padding: "left", "right" or "aligned", see `collate`. logit_chunk: see `Batch`. progress: by default shows nothing.
    """

    max_examples: int
    ranks: Ranks = Ranks()
    padding: str = "right"
    logit_chunk: int = DEFAULT_CHUNK
    progress: ProgressDisplay = field(default_factory=lambda: ProgressDisplay(enabled=False), compare=False)

    @classmethod
    def of(cls, config: Config, ranks: Ranks, progress: ProgressDisplay | None = None) -> "MicroBatches":
        """Read the division from a run's config. Raises UserError if the batch has fewer pairs than there are ranks."""
        train = config.train
        if train.batch_size < ranks.size:
            raise UserError(f"train.batch_size is {train.batch_size} but there are {ranks.size} ranks; raise it")
        share = -(-train.batch_size // ranks.size)
        shown = {} if progress is None else {"progress": progress}
        size = min(train.micro_batch_size, share)
        return cls(size, ranks, config.task.padding, config.task.text.logit_chunk, **shown)

    def count(self, examples: int) -> int:
        """Count the micro-batches that a rank gets of so many examples."""
        return -(-examples // (self.max_examples * self.ranks.size))

    def iterate(self, examples: Sequence[Example], *, full: bool, phase: str | None = None) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of `examples`; every rank gets the same number.

        full: see `collate`. phase: name of the phase in which each micro-batch is shown as one pass; None where the caller has
        a phase that counts them.
        """
        if phase is None:
            yield from self._divide(examples, full)
            return
        with self.progress.phase(phase, self.count(len(examples))) as passes:
            for micro_batch in self._divide(examples, full):
                yield micro_batch
                passes.advance()

    def aligned(self) -> "MicroBatches":
        """Return the same division with rows aligned where their prompts differ first, for passes over what follows."""
        return replace(self, padding="aligned")

    def _divide(self, examples: Sequence[Example], full: bool) -> Iterator[MicroBatch]:
        order = sorted(examples, key=self._order)
        parts = [order[start : start + self.max_examples] for start in range(0, len(order), self.max_examples)]
        for first in range(0, len(parts), self.ranks.size):
            own = first + self.ranks.rank
            is_counted = own < len(parts)
            chosen = parts[own if is_counted else first]
            batch = collate(chosen, full=full, padding=self.padding)
            if batch.logit_chunk is not None:
                batch = batch._replace(logit_chunk=self.logit_chunk)
            yield MicroBatch(chosen, batch.to(self.ranks.device), is_counted)

    def _order(self, example: Example) -> tuple[int, ...]:
        """Sort examples such that little is padded."""
        return *computed_tokens(example, over_suffix=self.padding == "aligned"), example.id
