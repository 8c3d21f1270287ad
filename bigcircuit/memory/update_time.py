"""Predict how long an update and a whole run take on this machine, before a byte of weights is loaded."""

import os
from collections.abc import Mapping
from math import ceil, inf
from typing import NamedTuple

import torch

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.memory.estimate import Estimate, Workload
from bigcircuit.memory.pass_seconds import PassSeconds, measure_passes, with_threads
from bigcircuit.memory.shortened import shortened, weight_bytes
from bigcircuit.memory.weight_reads import (
    bytes_of_scoring_pass,
    bytes_of_update_pass,
    cached_bytes,
    hash_speed,
    read_speed,
)
from bigcircuit.model.deepspeed_config import pieces_on
from bigcircuit.model.weight_files import weight_files
from bigcircuit.runtime.host_memory import GIB, FreeMemory
from bigcircuit.train.resolve import ResolvedRun

_GATHER_SPEED = 0.5 * GIB
"""Bytes of whole weights that gloo gathers a second over the loopback of one host (benchmarks/update_time.md)."""
_GATHER_SECONDS = 0.002
"""What DeepSpeed and gloo take for each gather besides."""


class Passes(NamedTuple):
    """Passes over micro-batches that a rank makes in a run, by what they compute."""

    references: int
    """Through the full model alone, before the first update."""
    update: int
    """Micro-batches of one update."""
    updates: int
    validation: int
    """Micro-batches of one validation."""
    validations: int
    final: int
    """Micro-batches of held-out pairs, on which all circuits, the empty one and the full model are scored."""

    @classmethod
    def of(cls, run: ResolvedRun, ranks: int) -> "Passes":
        """Count the passes of a run that starts anew."""
        config, splits = run.config, run.data.splits
        train, validation = splits["train"], splits["validation"] or splits["train"]
        steps = max(member.train.steps for member in run.members)
        dealt = MicroBatches.of(config, Ranks(0, ranks))

        def passes(count: int) -> int:
            return ceil(ceil(count / dealt.max_examples) / ranks)

        both_ways = config.train.both_ways and not train[0].is_window
        examples = len(train) * (2 if both_ways else 1)  # at most: where the full model shows the behaviour
        references = passes(min(examples, steps * config.train.batch_size)) + passes(len(validation))
        references += passes(len(train)) if both_ways else 0
        references += sum(passes(len(split)) for split in splits.values()) if config.task.keep == "solved" else 0
        if KINDS[config.ablation.name].needs_moments:
            measured = train if run.ablation_data is None else run.ablation_data.examples
            references += passes(len(measured)) * (2 if config.ablation.prompts == "both" else 1)
        points = config.gates.warm_start_points if config.gates.warm_start == "integrated_gradients" else 0
        finish = config.ablation.finish_steps if KINDS[config.ablation.name].learned else 0
        update = passes(config.train.batch_size)
        return cls(
            references=references,
            update=update,
            updates=steps + finish + ceil(points * passes(len(train)) / update),
            validation=passes(len(validation)),
            validations=ceil(steps / config.train.validate_every),
            final=passes(len(splits["test"])),
        )


class RunTime(NamedTuple):
    """Predicted seconds of a run on this machine."""

    update: float
    """One update."""
    parts: Mapping[str, float]
    """The whole run by purpose."""
    read: int
    """Bytes read from disk in every micro-batch of an update."""
    measured: PassSeconds

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.parts.values())


class Transfers(NamedTuple):
    """Weights that have to be brought to a rank in every pass, and the speeds of this machine."""

    weights: int
    """Bytes of all weights."""
    gathered: int
    """Bytes that a forward pass gathers."""
    gathers: int
    """Gathers of a forward pass from other ranks on this CPU host; 0 where a rank holds all weights."""
    cache: int
    """Bytes of memory in which weights stay that were read; at least `weights` where they are read once."""
    disk: float = inf
    """Bytes a second."""

    @classmethod
    def of(cls, run: ResolvedRun, work: Workload, memory: FreeMemory, needed: Estimate) -> "Transfers":
        """Find what a run has to transfer. The speed of links between GPUs is not known: their gathers are left out."""
        frozen, weights = run.model.skeleton, weight_bytes(run.model.skeleton.model)
        cache = weights if memory.is_gpu or not run.model.stays_in_files else memory.free - needed.total * work.ranks
        shares_pages = run.model.deepspeed is None or pieces_on(run.model.deepspeed) == "nvme"
        if shares_pages or memory.is_gpu or work.ranks == 1:
            return cls(weights, 0, 0, cache)
        layers = sum(weight_bytes(layer.module) for layer in frozen.layers)
        if run.model.stays_in_files:  # and vocabulary matrices are used there
            return cls(weights, layers, len(frozen.layers), cache)
        inside = {id(p) for layer in frozen.layers for p in layer.module.parameters()}
        outside = sum(id(p) not in inside for p in frozen.model.parameters())
        return cls(weights, weights, len(frozen.layers) + outside, cache)

    def seconds(self, *, backward: bool) -> float:
        """Return the seconds of gathers and reads of one pass, forward only or forward and backward."""
        gathered = self.gathered / _GATHER_SPEED + self.gathers * _GATHER_SECONDS if self.gathers else 0.0
        return gathered * (2 if backward else 1) + self.read(backward=backward) / self.disk

    def read(self, *, backward: bool) -> int:
        """Return the bytes that one pass reads from disk."""
        return (bytes_of_update_pass if backward else bytes_of_scoring_pass)(self.weights, self.cache)


def predict_time(run: ResolvedRun, work: Workload, memory: FreeMemory, needed: Estimate) -> RunTime:
    """Predict the seconds of an update and of the run from a measurement of a few seconds on this machine.

    needed: memory of a rank, see `fit.needs`. Raises UserError if two layers do not fit into free memory.
    """
    ranks, device = work.ranks, torch.device("cuda" if memory.is_gpu else "cpu")
    least, free = weight_bytes(shortened(run, 2).model.skeleton.model), FreeMemory.measure(device.type).free
    if least > free:
        raise UserError(
            f"--time measures two layers with the embeddings, which need {least / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free; "
            "leave it out, or measure on the machine of the run"
        )
    files = weight_files(run.config.model)
    stored = sum(file.stat().st_size for file in files)
    cold = stored - cached_bytes(files)
    transfers = Transfers.of(run, work, memory, needed)
    if files and (cold > 0 or transfers.read(backward=True)):
        transfers = transfers._replace(disk=read_speed(files))
    with with_threads(threads_of_rank(ranks)):
        passes = measure_passes(run, work, Ranks(device=device))
    crowded = 1.0 if memory.is_gpu else max(1.0, ranks * threads_of_rank(ranks) / _cores())
    return assemble(Passes.of(run, ranks), passes, transfers, crowded, cold / transfers.disk + stored / hash_speed())


def assemble(
    counts: Passes, seconds: PassSeconds, transfers: Transfers, crowded: float = 1.0, start: float = 0.0
) -> RunTime:
    """Add up a run from its passes. crowded: ranks' threads per core, if above 1; start: seconds before the first pass."""
    forward = transfers.seconds(backward=False)
    update = counts.update * (crowded * seconds.update + transfers.seconds(backward=True)) + crowded * seconds.rest
    scoring, reference = crowded * seconds.scoring + forward, crowded * seconds.reference + forward
    return RunTime(
        update=update,
        parts={
            "weights read and hashed": start,
            "references": counts.references * reference,
            "updates": counts.updates * update,
            "validations": counts.validations * counts.validation * scoring,
            "final scores": counts.final * (scoring + reference),
        },
        read=transfers.read(backward=True),
        measured=seconds,
    )


def threads_of_rank(ranks: int) -> int:
    """Return the threads of a rank: those of this process, or, of several ranks, OMP_NUM_THREADS, which torchrun sets to 1."""
    return torch.get_num_threads() if ranks == 1 else int(os.environ.get("OMP_NUM_THREADS") or 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
