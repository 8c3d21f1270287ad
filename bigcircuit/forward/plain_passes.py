"""Plain passes over examples before masked ones: reference logits, and activations of the corrupted run."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.kept_passes import PlainPass
from bigcircuit.forward.streams import Streams


def plain_passes(
    streams: Streams,
    micro_batches: MicroBatches,
    examples: Sequence[Example],
    sites: Collection[str],
    *,
    full: bool,
    references: Callable[[MicroBatch], Tensor] | None = None,
) -> Iterator[PlainPass]:
    """Yield this rank's micro-batches with what masked passes over them need; kept ones where the streams keep passes.

    sites: those that masks may close; none where no masked pass follows. full: see `collate`. references: logits of a
    micro-batch to take instead of those of the full model.
    """
    over_suffix = streams.over_suffix and bool(sites)
    divided = micro_batches.aligned() if over_suffix else micro_batches

    def make() -> Iterator[PlainPass]:
        for micro_batch in divided.iterate(examples, full=full):
            with torch.no_grad():
                corrupted = streams.record(micro_batch.batch, sites) if over_suffix else None
            reference = torch.empty(0) if references else streams.reference(micro_batch.batch)
            yield PlainPass(micro_batch, reference, corrupted)

    if streams.kept is None:
        found = make()
    else:
        key = (divided.max_examples, divided.padding, full, references is None, frozenset(sites), tuple(examples))
        found = streams.kept.iterate(key, make(), divided.ranks)
    for one in found:
        micro_batches.ranks.stop_if_requested()
        yield one if references is None else one._replace(reference=references(one.micro_batch))
