"""Activations of the corrupted run by example: computed once, and used in every update.

They depend on no mask, no member and no step. An example needs (tokens behind its prefix) x (widths of its sites) + (tokens of its
prefix) x (keys and values), in each layer, in the dtype of the model.

Shapes: R rows of a batch, T tokens, c columns before the cut, n width of a site, H key/value heads, d width of a head.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.data.collate import shared_prefix
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.corrupted import Corrupted, KeysAndValues, RecordedBatch
from bigcircuit.forward.store_memory import StoreMemory
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import SITE_WIDTH, LayerShape, measured_sites

_AT_ONCE = 16
"""Examples whose activations the ranks exchange in one message."""


class Lengths(NamedTuple):
    """Tokens of an example before and from its first difference on, with those of its first answer but the last."""

    prefix: int
    suffix: int

    @classmethod
    def of(cls, example: Example) -> "Lengths":
        """Count the tokens of an example."""
        prefix = shared_prefix(example.clean, example.corrupted)
        return cls(prefix, len(example.clean) + len(example.answers[0]) - 1 - prefix)

    @classmethod
    def total(cls, examples: Sequence[Example]) -> "Lengths":
        """Add up the tokens of examples."""
        found = [cls.of(example) for example in examples]
        return cls(sum(one.prefix for one in found), sum(one.suffix for one in found))


def stored_values(shapes: Sequence[LayerShape], sites: Collection[str], tokens: Lengths) -> int:
    """Count the values that a store holds. tokens: sums over its examples."""
    width = sum(SITE_WIDTH[site](shape) for site in sites for shape in shapes)
    return tokens.suffix * width + tokens.prefix * sum(2 * shape.kv_heads * shape.head_dim for shape in shapes)


class CorruptedStore:
    """Activations of the corrupted run of examples with one row each, as in training, on the host."""

    def __init__(
        self,
        streams: Streams,
        examples: Sequence[Example],
        micro_batches: MicroBatches,
        sites: Collection[str],
        memory: StoreMemory | None = None,
    ) -> None:
        """Run the full model on the corrupted prompts. Within the streams; ranks divide the work and all get all of it.

        sites: those that masks may close. memory: where the store may lie; by default in the memory of the process. Raises
        UserError if a scratch file does not fit on the disk.
        """
        there = measured_sites(streams.frozen.shapes)
        self.sites, self.device = sorted(site for site in sites if site in there), streams.frozen.device
        self._places = {example.id: index for index, example in enumerate(examples)}
        self._lengths = [Lengths.of(example) for example in examples]
        self._widths: list[tuple[list[int], list[tuple[int, int]]]] = []
        """By layer: widths of the sites, and (H, d) of keys and of values."""
        self._values: tuple[Tensor, ...] = ()
        """By example, one-dimensional."""
        self._memory, self._writes = memory, True
        self._views: dict[int, list[list[Tensor]]] = {}
        groups = [examples[first : first + _AT_ONCE] for first in range(0, len(examples), _AT_ONCE)]
        passes = sum(micro_batches.count(len(group)) for group in groups)
        with micro_batches.progress.phase("corrupted activations", passes) as phase:
            for group in groups:
                self._add(streams, group, micro_batches, phase.advance)
        micro_batches.ranks.barrier()  # before a rank reads what another one writes

    def _add(
        self,
        streams: Streams,
        examples: Sequence[Example],
        micro_batches: MicroBatches,
        advance: Callable[[], None],
    ) -> None:
        ranks, mine = micro_batches.ranks, dict[int, Tensor]()
        for micro_batch in micro_batches.aligned().iterate(examples, full=False):
            ranks.stop_if_requested()
            recorded = streams.record(micro_batch.batch, self.sites)
            if not self._values:
                self._lay_out(recorded, ranks)
            if micro_batch.is_counted:
                for row, example in enumerate(micro_batch.examples):
                    own = self._values[self._places[example.id]] if ranks.size == 1 else None
                    mine[example.id] = torch.cat([*self._parts(recorded, row, example.id)], out=own)
            advance()
        if ranks.size == 1:  # nothing to exchange, and no second copy
            return
        stored = [self._values[self._places[example.id]] for example in examples]
        found = [mine.get(one.id, torch.zeros_like(values)) for one, values in zip(examples, stored, strict=True)]
        ranks.all_reduce(found)
        for values, new in zip(stored, found, strict=True):
            if self._writes:
                values.copy_(new)

    def _lay_out(self, recorded: RecordedBatch, ranks: Ranks) -> None:
        """Allocate the storage, with widths as recorded: some models repeat key/value heads before they attend."""
        for layer, pair in sorted(recorded.keys_and_values.items()):
            widths = [recorded.sites[layer, site].shape[-1] for site in self.sites]
            self._widths.append((widths, [(one.shape[1], one.shape[3]) for one in pair]))
        layers = range(len(self._widths))
        counts = [sum(sum(self._sizes(layer, lengths)) for layer in layers) for lengths in self._lengths]
        dtype = recorded.keys_and_values[0][0].dtype
        if self._memory is None:
            values = torch.empty(sum(counts), dtype=dtype)
        else:
            values, self._writes = self._memory.allocate(sum(counts), dtype, ranks)
        self._values = values.split(counts)

    def _sizes(self, layer: int, lengths: Lengths) -> list[int]:
        """Count the values of an example in one layer: by site, keys, values."""
        widths, heads = self._widths[layer]
        return [lengths.suffix * width for width in widths] + [lengths.prefix * h * d for h, d in heads]

    def _parts(self, recorded: RecordedBatch, row: int, example: int) -> Iterator[Tensor]:
        """Cut an example's values out of a recorded batch."""
        prefix, suffix = self._lengths[self._places[example]]
        for layer in range(len(self._widths)):
            for site in self.sites:
                yield recorded.sites[layer, site][row, :suffix].reshape(-1)
            for values in recorded.keys_and_values[layer]:
                yield values[row, :, recorded.cut - prefix :].reshape(-1)

    def layer(self, example: int, layer: int) -> list[Tensor]:
        """Return an example's values in one layer: by site [suffix, n], keys and values [H, prefix, d]."""
        if example not in self._views:
            self._views[example] = [*self._cut(example)]
        return self._views[example][layer]

    def _cut(self, example: int) -> Iterator[list[Tensor]]:
        place = self._places[example]
        prefix, suffix = self._lengths[place]
        sizes = [self._sizes(layer, self._lengths[place]) for layer in range(len(self._widths))]
        layers = self._values[place].split([*map(sum, sizes)])
        for values, parts, (widths, heads) in zip(layers, sizes, self._widths, strict=True):
            shapes = [(suffix, width) for width in widths] + [(h, prefix, d) for h, d in heads]
            yield [part.view(shape) for part, shape in zip(values.split(parts), shapes, strict=True)]

    def __call__(self, micro_batch: MicroBatch) -> Corrupted:
        """Return the activations of a micro-batch with one row an example."""
        return _StoredBatch(self, micro_batch)

    @property
    def bytes(self) -> int:
        """Size of what is stored."""
        return sum(values.numel() * values.element_size() for values in self._values)


class _StoredBatch:
    """Activations of an aligned batch, laid out one layer at a time."""

    def __init__(self, store: CorruptedStore, micro_batch: MicroBatch) -> None:
        self.cut = micro_batch.batch.shared
        longest = max(Lengths.of(example).prefix for example in micro_batch.examples)
        assert self.cut == longest, "MicroBatches.aligned() gives such batches"
        self._columns = micro_batch.batch.clean.shape[1] - self.cut
        self._store, self._ids = store, [example.id for example in micro_batch.examples]

    def site(self, layer: int, site: str) -> Tensor:
        """See `Corrupted.site`."""
        parts = [self._store.layer(example, layer)[self._store.sites.index(site)] for example in self._ids]
        found = parts[0].new_zeros(len(parts), self._columns, parts[0].shape[-1])
        for row, part in enumerate(parts):
            found[row, : len(part)] = part
        return found.to(self._store.device, non_blocking=True)

    def prefix(self, layer: int) -> KeysAndValues:
        """See `Corrupted.prefix`."""
        keys, values = (self._prefix(layer, which) for which in (-2, -1))
        return keys, values

    def _prefix(self, layer: int, which: int) -> Tensor:
        parts = [self._store.layer(example, layer)[which] for example in self._ids]
        heads, _, width = parts[0].shape
        found = parts[0].new_zeros(len(parts), heads, self.cut, width)
        for row, part in enumerate(parts):
            found[row, :, self.cut - part.shape[1] :] = part
        return found.to(self._store.device, non_blocking=True)
