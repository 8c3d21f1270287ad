"""Ranks: who am I, what do all ranks agree on. One process without a launcher needs none of it and starts none of it.

Each rank holds the whole population and a share of the batch; gradients are summed over ranks, so every rank makes the
same update.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of a global batch that this rank works on; the split does not depend on their content."""
        return items[self.rank :: self.size]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over ranks in place, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Hold until every rank is here."""
        if self.size > 1:
            dist.barrier()


def start() -> Ranks:
    """Join the process group that a launcher announced in the environment, if it announced more than one rank."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size)
    return Ranks(rank, size, device)


def stop(ranks: Ranks) -> None:
    """Leave the process group."""
    if ranks.size > 1:
        dist.destroy_process_group()
