"""Measure the passes of a run on this machine: real passes of a few layers of its model with random weights.

Matrix products, elementwise work, overheads of operations and recomputation are in the measurement with the shapes, row counts
and precision of the run. More layers than are measured cost what the measured ones cost; a pass over more pairs as many times
more as it has FLOPs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.corrupted_store import CorruptedStore
from bigcircuit.forward.streams import Streams
from bigcircuit.memory.estimate import Workload, blank_ablation, blank_state, meta_update
from bigcircuit.memory.shortened import from_few_layers, materialised, shortened, weight_bytes
from bigcircuit.metrics.score import score
from bigcircuit.model.granularity import SITE_WIDTH
from bigcircuit.train.resolve import ResolvedRun
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import current_masks, faithfulness_gradient, update

_ONE_LAYER, _WHOLE = 0.6, 0.8
"""Seconds that an update of one layer, and of the whole model, may take in the measurement, as matrix products alone."""
_WHOLE_BYTES = 1 << 30
"""Weights of a model that is measured whole."""
_TYPICAL = 16
"""Updates among whose micro-batches the one of median length is measured."""
_REPEATED = 0.4
"""Seconds in which a pass is repeated; the median counts."""


class PassSeconds(NamedTuple):
    """Seconds of the passes that a run is made of, on this machine."""

    update: float
    """One micro-batch forward and backward, all members."""
    rest: float
    """What an update does besides: penalties, clipping, Adam."""
    scoring: float
    """One micro-batch of a validation: all members, with the logits of the full model at hand."""
    reference: float
    """One micro-batch through the full model."""
    flops: int
    """FLOPs of one micro-batch of an update."""
    layers: int
    """Decoder layers that were measured."""
    waited: float = 1.0
    """Seconds that passed for each that was computed: above 1 where other programs took the cores meanwhile."""


def update_flops(run: ResolvedRun, work: Workload) -> int:
    """Count the FLOPs of one micro-batch of an update, forward and backward with all recomputation, without weights."""
    return from_few_layers(run, lambda few: _flops(meta_update(few, work)), 1)


def _flops(run_pass: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run_pass()
    return counter.get_total_flops()


def measure_passes(run: ResolvedRun, work: Workload, ranks: Ranks) -> PassSeconds:
    """Measure the passes of rank 0 of the planned ranks on this machine, with as many threads as torch has now.

    ranks: whose device is measured. Needs memory for two layers and the embeddings, or for a whole model of up to 1 GiB.
    """
    wall, computed = time.perf_counter(), time.thread_time()
    layers, size = len(run.model.shapes), MicroBatches.of(run.config, replace(ranks, size=work.ranks)).max_examples
    examples, speed = typical_micro_batch(run, size), _product_speed(run, ranks.device)
    one, whole = _flops(meta_update(shortened(run, 1), work)), update_flops(run, work)
    small = weight_bytes(run.model.skeleton.model) <= _WHOLE_BYTES and whole <= _WHOLE * speed
    measured = layers if small else min(2, layers)
    pairs = len(examples) if small else max(1, min(len(examples), int(len(examples) * _ONE_LAYER * speed / one)))
    few = materialised(shortened(run, measured), ranks.device)
    probe = _Probe(few, work, ranks, examples[:pairs])
    taken = probe.update_pass()
    seconds = taken
    if measured < layers:
        first = _Probe(shortened(few, 1), work, ranks, examples[:pairs]).update_pass()
        # A product with few rows takes longer a FLOP, and the vocabulary has the fewest: FLOPs are a bound, for noise too.
        by_flops = taken * whole / (one + (whole - one) / (layers - 1))
        seconds = min(first + (layers - 1) * (taken - first), by_flops) if taken > first else by_flops
    more = len(examples) / pairs * seconds / taken
    return PassSeconds(
        update=taken * more,
        rest=probe.rest() * layers / measured,
        scoring=probe.scoring() * more,
        reference=probe.reference() * more,
        flops=whole,
        layers=measured,
        waited=1.0 if ranks.device.type == "cuda" else (time.perf_counter() - wall) / (time.thread_time() - computed),
    )


def typical_micro_batch(run: ResolvedRun, size: int) -> list[Example]:
    """Choose the micro-batch of median length of the first updates."""
    order = run.training_order(run.data.splits["train"])
    updates = range(min(_TYPICAL, -(-len(order.examples) // run.config.train.batch_size)))
    parts = [part.examples for step in updates for part in MicroBatches(size).iterate(order.batch(step), full=False)]
    parts.sort(key=lambda part: sum(len(example.clean) for example in part))
    return parts[len(parts) // 2]


def _product_speed(run: ResolvedRun, device: torch.device) -> float:
    """Measure matrix products of the run's precision, FLOPs a second: only to choose how much is measured."""
    dtype = next(run.model.skeleton.model.parameters()).dtype
    left, right = (torch.ones(n, 1024, dtype=dtype, device=device) for n in (256, 1024))
    return 2 * 256 * 1024 * 1024 / _median(lambda: left @ right.T, device, 0.05)


def _median(run_pass: Callable[[], object], device: torch.device, within: float = _REPEATED) -> float:
    """Return the median seconds of a call, repeated for some seconds; the first call is left out if there are others.

    On CPU the seconds that this thread computes: it has a part in all that others do, and other programs on the cores take no part
    of it.
    """
    taken: list[float] = []
    began = time.perf_counter()
    while not taken or time.perf_counter() - began < within and len(taken) < 20:
        started = _clock(device)
        run_pass()
        taken.append(_clock(device) - started)
    rest = sorted(taken[1:] or taken)
    return rest[(len(rest) - 1) // 2]


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class _Probe:
    """The first layers of a run's model with random weights, and one micro-batch."""

    def __init__(self, run: ResolvedRun, work: Workload, ranks: Ranks, examples: list[Example]) -> None:
        self._run, self._examples = run, examples
        task = run.config.task
        self._micro_batches = MicroBatches(len(examples), ranks, task.padding, task.text.logit_chunk)
        self._state = blank_state(self._run, ranks.device)
        frozen = self._run.model.skeleton
        self._streams = Streams(frozen, blank_ablation(self._run, work, ranks.device), run.config.train.checkpointing)
        self._head: Any = frozen.head.weight

    def update_pass(self) -> float:
        """Measure one micro-batch forward and backward, s."""
        store = None
        if self._run.stores_corrupted:
            with self._streams:
                store = CorruptedStore(self._streams, self._examples, self._micro_batches, SITE_WIDTH)
        return self._timed(lambda: faithfulness_gradient(*self._arguments(self._examples), store=store))

    def rest(self) -> float:
        """Measure what an update does besides its passes: an update on no examples, s."""
        return self._timed(lambda: update(*self._arguments([])))

    def _arguments(
        self, examples: list[Example]
    ) -> tuple[TrainState, Streams, Callable[[MicroBatch], Tensor], list[Example], MicroBatches]:
        return self._state, self._streams, self._references, examples, self._micro_batches

    def scoring(self) -> float:
        """Measure one micro-batch of a validation, s."""
        circuits = current_masks(self._state, self._streams.frozen)
        for index, masks in enumerate(circuits):  # blank members are equal, and equal circuits would be scored once
            for mask in masks.values():
                mask[:, index % max(mask.shape[1], 1) :][:, :1] ^= True
        return self._timed(
            lambda: score(self._streams, self._examples, circuits, self._micro_batches, references=self._references)
        )

    def reference(self) -> float:
        """Measure one micro-batch of the full model, s."""
        [micro_batch] = self._micro_batches.iterate(self._examples, full=False)
        return self._timed(lambda: self._streams.reference(micro_batch.batch))

    def _references(self, micro_batch: MicroBatch) -> Tensor:
        vocabulary, hidden = self._head.shape
        width = vocabulary if micro_batch.batch.logit_chunk is None else hidden
        return self._head.new_zeros(len(micro_batch.batch.score_row), width)

    def _timed(self, run_pass: Callable[[], object]) -> float:
        with self._streams, self._state.weights_in_model():
            return _median(run_pass, self._micro_batches.ranks.device)


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Have torch use so many threads inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
