"""Ranks: who am I, what do all ranks agree on. One process without a launcher needs none of it and starts none of it.

Each rank holds the whole population and works through a share of every batch; sums over ranks make every rank do the same
update.
"""

import hashlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from bigcircuit.distributed.launcher_env import launched_as, set_gloo_interface
from bigcircuit.distributed.signals import StopRequest
from bigcircuit.distributed.watchdog import Watchdog, connect_ranks
from bigcircuit.errors import ReportedError, Stopped, UserError


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    stop: StopRequest = field(default_factory=StopRequest)
    watch: Watchdog | None = None

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors of one type over ranks in place, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(self.device)
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        found = torch.tensor(number, device=self.device)
        if self.size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def note(self, line: str) -> None:
        """Remember what this rank did last, to be shown if it is lost."""
        if self.watch is not None:
            self.watch.note(line)

    def speaks_for(self, error: ReportedError) -> bool:
        """Tell the others why this rank ends; returns whether this rank is to show it to the user, at once."""
        if self.watch is None:
            return True
        if error.everywhere:
            with suppress(RuntimeError):
                self.wait()  # until the first rank has saved what there is to save
            self.watch.leave()
        elif self.first:
            self.watch.leave(str(error), error.exit_code)
        else:
            time.sleep(1.0)  # where the first rank has the same error, it is the one to show it, and ends us
            if not self.watch.leave(str(error), error.exit_code):
                return True
        if not self.first:
            time.sleep(0.5)  # let the first rank show it before a launcher sees us gone and ends everybody
        return self.first

    def stop_if_asked(self) -> None:
        """Raises Stopped on every rank at the same place when any of them has been asked to stop."""
        asked = torch.tensor([float(self.stop.number)])
        self.sum_([asked])
        if asked:
            self.stop.number = self.stop.number or signal.SIGTERM
            raise Stopped(self.stop.number)

    def stopped(self, number: int, _: FrameType | None) -> None:
        """Handler of a signal that comes where a run cannot be saved. Raises Stopped, once: then the end is under way."""
        if not self.stop.number:
            self.stop.number = number
            error = Stopped(number)
            error.everywhere = False  # the other ranks are somewhere else
            raise error

    def agree(self, values: Mapping[str, str]) -> None:
        """Raises UserError on all ranks, naming the field, unless every rank has the same values as the first one.

        A rank that leaves a value empty has no say in it.
        """
        if self.size == 1:
            return
        digests = [
            int(hashlib.sha256(value.encode()).hexdigest()[:15], 16) if value else 0 for value in values.values()
        ]
        mine = torch.tensor(digests, device=self.device)
        everybody = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everybody, mine)
        for rank, theirs in enumerate(everybody):
            for name, ours, other in zip(values, everybody[0].tolist(), theirs.tolist(), strict=True):
                if other and other != ours:
                    raise UserError(
                        f"rank {rank} has another {name} than rank 0; give all hosts the same files and versions"
                    )

    def wait(self) -> None:
        """Hold until every rank is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that a launcher announced in the environment; leaves them at the end.

    An error of one rank is told to all and shown once; a lost rank ends the process (see watch.py).
    """
    ranks = _start()
    if ranks.watch is not None:
        signal.signal(signal.SIGTERM, ranks.stopped)
    try:
        yield ranks
    except ReportedError as error:
        error.show = ranks.speaks_for(error)
        raise
    except RuntimeError:
        if ranks.watch is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher that saw it first would cut our words short
            ranks.watch.blame()
        raise
    ranks.wait()  # the first rank is the centre of the watch and must not leave early
    if ranks.watch is not None:
        ranks.watch.leave()
    if dist.is_initialized():
        dist.destroy_process_group()


def _start() -> Ranks:
    rank, size, local = launched_as()
    ranks = join_ranks(rank, size, local)
    if size == 1:
        return ranks

    def agree(number: int) -> int:
        shared = torch.tensor([number], device=ranks.device)
        dist.broadcast(shared, 0)
        return int(shared)

    return replace(ranks, watch=Watchdog(rank, connect_ranks(rank, size, os.environ["MASTER_ADDR"], agree)))


def join_ranks(rank: int, size: int, device: int) -> Ranks:
    """Become one of `size` ranks that meet at MASTER_ADDR; device: the GPU to use, where there are any. Nobody watches them."""
    place = torch.device("cuda", device) if torch.cuda.is_available() else torch.device("cpu")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size > 1:
        set_gloo_interface(size)
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", rank=rank, world_size=size)
    return Ranks(rank, size, place)
