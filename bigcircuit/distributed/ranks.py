"""Ranks: the process group, sums over ranks, agreement between ranks, stop requests.

Each rank holds the whole population and computes a share of every batch; sums over ranks make every rank do the same update.
A single process without a launcher starts no process group.
"""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from bigcircuit.distributed.launcher_env import crowding, ranks_on_this_host, read_launcher_env, set_gloo_interface
from bigcircuit.distributed.rendezvous import connect_ranks
from bigcircuit.distributed.signals import StopRequest
from bigcircuit.distributed.watchdog import Watchdog
from bigcircuit.errors import ReportedError, Stopped, UserError, first_line


@dataclass(frozen=True)
class Ranks:
    """Process group seen from this rank.

    size: number of ranks. watchdog: detects other ranks that died or hang; None for a single process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    stop: StopRequest = field(default_factory=StopRequest)
    watchdog: Watchdog | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors of one type over ranks in place, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(self.device)
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def maximum(self, number: int) -> int:
        """Return the largest of the numbers that the ranks pass."""
        found = torch.tensor(number, device=self.device)
        if self.size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def set_status(self, line: str) -> None:
        """Store what this rank did last; the other ranks print this line if this rank dies or hangs."""
        if self.watchdog is not None:
            self.watchdog.set_status(line)

    def report_error(self, error: ReportedError) -> bool:
        """Send the reason why this rank exits to the other ranks. Returns whether this rank is the one to print the error."""
        if self.watchdog is None:
            return True
        if error.on_all_ranks:
            with suppress(RuntimeError):
                self.barrier()  # until rank 0 has saved its state
            self.watchdog.close()
        elif self.is_first:
            self.watchdog.close(str(error), error.exit_code)
        else:
            time.sleep(1.0)  # if rank 0 has the same error, rank 0 prints it and its message ends this process
            if not self.watchdog.close(str(error), error.exit_code):
                return True
        if not self.is_first:
            time.sleep(0.5)  # let rank 0 print before a launcher sees this exit and ends all ranks
        return self.is_first

    def stop_if_requested(self) -> None:
        """Raises Stopped on every rank at the same place if any rank has a stop request."""
        requested = torch.tensor([float(self.stop.number)])
        self.all_reduce([requested])
        if requested:
            self.stop.number = self.stop.number or signal.SIGTERM
            raise Stopped(self.stop.number)

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """Handle a signal where the run's state cannot be saved. Raises Stopped for the first signal and ignores later ones."""
        if not self.stop.number:
            self.stop.number = number
            error = Stopped(number)
            error.on_all_ranks = False  # the other ranks are at another place
            raise error

    def check_equal(
        self, values: Mapping[str, str], remedy: str = "give all hosts the same files and versions"
    ) -> None:
        """Raises UserError on all ranks, naming the field, unless every rank passes the same values as rank 0.

        A value that a rank leaves empty is not compared. remedy: end of the message.
        """
        if self.size == 1:
            return
        digests = [
            int(hashlib.sha256(value.encode()).hexdigest()[:15], 16) if value else 0 for value in values.values()
        ]
        own = torch.tensor(digests, device=self.device)
        of_all = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(of_all, own)
        for rank, of_rank in enumerate(of_all):
            for name, expected, found in zip(values, of_all[0].tolist(), of_rank.tolist(), strict=True):
                if found and found != expected:
                    raise UserError(f"rank {rank} has another {name} than rank 0; {remedy}")

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the process group that a launcher announced in the environment, and leave it at the end.

    device: `model.device`. Raises UserError for GPUs where there are none.
    An error of one rank is sent to all ranks and printed once; a dead or hanging rank ends the process (see watchdog.py).
    """
    ranks = _start(device)
    if ranks.watchdog is not None:
        signal.signal(signal.SIGTERM, ranks.on_signal)
    try:
        yield ranks
    except ReportedError as error:
        error.show = ranks.report_error(error)
        raise
    except RuntimeError as error:
        if ranks.watchdog is not None:
            # A launcher that noticed the failure first would end this process before it has printed the cause.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            reason = f"{type(error).__name__}: {first_line(error)}"
            ranks.watchdog.wait_for_verdict(reason)
            ranks.watchdog.close(reason, 1)
        raise
    ranks.barrier()  # all heartbeats go through rank 0, which must not exit early
    if ranks.watchdog is not None:
        ranks.watchdog.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def _start(device: str) -> Ranks:
    rank, size, local_rank = read_launcher_env()
    try:
        ranks = join_ranks(rank, size, local_rank, device)
    except dist.DistNetworkError as error:
        raise UserError(_no_meeting(rank, first_line(error))) from error
    if size == 1:
        return ranks
    if ranks.device.type == "cpu" and local_rank == 0:
        warning = crowding(ranks_on_this_host(size), torch.get_num_threads(), len(os.sched_getaffinity(0)))
        if warning is not None:
            sys.stderr.write(f"{warning}\n")

    def broadcast(number: int) -> int:
        shared = torch.tensor([number], device=ranks.device)
        dist.broadcast(shared, 0)
        return int(shared)

    return replace(ranks, watchdog=Watchdog(rank, connect_ranks(rank, size, os.environ["MASTER_ADDR"], broadcast)))


def _no_meeting(rank: int, reason: str) -> str:
    """Return the error that the ranks cannot meet; reason: what torch says of it."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if "EADDRINUSE" in reason:
        return (
            f"MASTER_PORT {port} is taken on this host, as by another run; give the launcher another port: --master_port of "
            "deepspeed, --master-port of torchrun"
        )
    return f"rank {rank} cannot meet the other ranks at MASTER_ADDR {address}, MASTER_PORT {port} ({reason})"


def uses_gpu(asked: str) -> bool:
    """Return whether passes run on a GPU. asked: `model.device`. Raises UserError for cuda where there is no GPU."""
    if asked == "cuda" and not torch.cuda.is_available():
        built = "" if torch.backends.cuda.is_built() else ", and this torch is built without CUDA"
        raise UserError(f"model.device is cuda and torch sees no GPU here{built}; set it to auto or cpu, or mend that")
    return asked != "cpu" and torch.cuda.is_available()


def join_ranks(rank: int, size: int, local_rank: int, asked: str = "auto") -> Ranks:
    """Join a process group of `size` ranks that meet at MASTER_ADDR, without a watchdog.

    local_rank: number of the GPU to use, where GPUs are used. asked: `model.device`. Raises UserError, see `uses_gpu`.
    """
    device = torch.device("cuda", local_rank) if uses_gpu(asked) else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1:
        set_gloo_interface(size)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size)
    return Ranks(rank, size, device)
