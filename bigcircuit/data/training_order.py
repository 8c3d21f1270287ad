"""Order of the examples in training: every example once an epoch, in halves of batches of like length.

What is padded to the longest is computed for nothing. So each epoch is a permutation that is cut into pools of a few batches,
sorted by length within a pool, and cut into halves of batches; a batch is a half of shorter and one of longer examples, which go
through the model apart where micro-batches are half a batch or less. The batches are then shuffled.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bigcircuit.data.collate import computed_tokens
from bigcircuit.data.pair import Example
from bigcircuit.seeding import mix

_BATCHES_A_POOL = 8
"""Larger pools pad less, and bring the same examples together more often."""


class TrainingOrder:
    """Batches of updates: a function of examples, batch size, seed and step alone."""

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int, *, over_suffix: bool) -> None:
        """over_suffix: whether passes run the tokens behind the shared prefix alone, as under interchange ablation."""
        self.examples, self._batch_size, self._seed = examples, batch_size, seed
        self._lengths = torch.tensor([computed_tokens(example, over_suffix=over_suffix)[0] for example in examples])
        self._epoch = lru_cache(2)(self._order)

    def batch(self, step: int) -> list[Example]:
        """Return the examples of an update."""
        count = len(self.examples)
        places = range(step * self._batch_size, (step + 1) * self._batch_size)
        return [self.examples[self._epoch(place // count)[place % count]] for place in places]

    def used(self, steps: int) -> list[Example]:
        """Return the examples that so many updates see, in the order of all examples."""
        ids = {example.id for step in range(min(steps, self._updates_that_see_all)) for example in self.batch(step)}
        return [example for example in self.examples if example.id in ids]

    @property
    def _updates_that_see_all(self) -> int:
        return -(-len(self.examples) // self._batch_size)

    def _order(self, epoch: int) -> list[int]:
        """Order an epoch. What completes a batch that the epoch before began, or is left at the end, stays as drawn."""
        count, size = len(self.examples), self._batch_size
        generator = torch.Generator().manual_seed(mix(self._seed, epoch))
        drawn = torch.randperm(count, generator=generator)
        first = min(-epoch * count % size, count)
        whole = (count - first) // size
        pools = drawn[first : first + whole * size].split(_BATCHES_A_POOL * size) if whole else ()
        batches = torch.cat([drawn.new_empty(0, size), *map(self._batches, pools)])
        middle = batches[torch.randperm(whole, generator=generator)]
        return torch.cat([drawn[:first], middle.flatten(), drawn[first + whole * size :]]).tolist()

    def _batches(self, pool: Tensor) -> Tensor:
        """Divide the indices of a pool into batches, [batches, size]. Those of one length each gave worse circuits (LOG.md)."""
        ordered = pool[self._lengths[pool].argsort(stable=True)]
        count, half = len(pool) // self._batch_size, self._batch_size // 2
        return torch.cat([ordered[: count * half].view(count, half), ordered[count * half :].view(count, -1)], 1)
