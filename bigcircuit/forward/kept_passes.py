"""Plain passes over examples, kept for the next circuits: they depend on no circuit.

Shapes: S scored positions, V vocabulary.
"""

from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.data.micro_batches import MicroBatch
from bigcircuit.distributed.launcher_env import ranks_on_this_host
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.corrupted import RecordedBatch
from bigcircuit.runtime.host_memory import GIB, FreeMemory


class PlainPass(NamedTuple):
    """A micro-batch with what the full model gives on it."""

    micro_batch: MicroBatch
    reference: Tensor
    """Logits on the clean prompts, [S, V], or head inputs of windows, [S, D]; empty where the caller has them."""
    corrupted: RecordedBatch | None
    """Activations of the corrupted run; None where masked passes do not run the suffix alone."""

    def to(self, device: torch.device | str) -> "PlainPass":
        """Return a copy on another device."""
        corrupted = self.corrupted
        return PlainPass(
            self.micro_batch._replace(batch=self.micro_batch.batch.to(device)),
            self.reference.to(device),
            None if corrupted is None else corrupted.to(device),
        )

    @property
    def bytes(self) -> int:
        """Size of logits and activations."""
        tensors = [] if self.corrupted is None else self.corrupted.tensors()
        return sum(one.numel() * one.element_size() for one in [self.reference, *tensors])


class KeptPasses:
    """Plain passes in the memory of the host. What does not fit is computed again each time."""

    def __init__(self, limit: float) -> None:
        """limit: GiB of memory for the passes of all ranks of a host; half of what is free at most."""
        self._limit = min(limit * GIB, FreeMemory.measure("cpu").free / 2)
        self._found: dict[Hashable, list[PlainPass]] = {}
        self._bytes = 0

    def iterate(self, key: Hashable, passes: Iterable[PlainPass], ranks: Ranks) -> Iterator[PlainPass]:
        """Yield the passes that are kept under a key, or else make them and keep them. The caller must take all of them."""
        if key in self._found:
            for kept in self._found[key]:
                yield kept.to(ranks.device)
            return
        found: list[PlainPass] = []
        room = self._limit / ranks_on_this_host(ranks.size) - self._bytes
        for one in passes:
            room -= one.bytes
            if room >= 0:
                found.append(one.to("cpu"))
            else:
                found.clear()
            yield one
        # Ranks that divide the weights make plain passes together, so all of them keep these or none does.
        if not ranks.maximum(int(room < 0)):
            self._found[key] = found
            self._bytes += sum(one.bytes for one in found)
