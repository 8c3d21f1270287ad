"""Memory of the store of corrupted activations: of the process, or pages of a scratch file that the ranks of a host share."""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.distributed.launcher_env import ranks_on_this_host, read_launcher_env
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.io.files import removing, reporting_disk_errors, temporary_path
from bigcircuit.runtime.host_memory import GIB


def is_in_file(size: int, ranks: int, limit: float) -> bool:
    """Return whether a store goes into a file.

    size: bytes; ranks: on one host, each of which would have a copy in memory; limit: `train.store_memory`, GiB.
    """
    return size * ranks > limit * GIB


class StoreMemory(NamedTuple):
    """Where a store may lie."""

    folder: Path
    """Folder of the scratch file."""
    limit: float
    """GiB of memory for the copies of all ranks of a host."""

    def allocate(self, count: int, dtype: torch.dtype, ranks: Ranks) -> tuple[Tensor, bool]:
        """Allocate `count` values. Returns them, and whether this rank is to write them: in a file one rank a host is.

        The file has no name once all ranks have mapped it, so it ends with them, however they end. Raises UserError where the disk
        is too full.
        """
        size, local = count * dtype.itemsize, read_launcher_env().local_rank
        if not size or not is_in_file(size, ranks_on_this_host(ranks.size), self.limit):
            return torch.empty(count, dtype=dtype), True
        path = temporary_path(self.folder / "corrupted", ranks.rank - local)
        remedy = "free space, or set train.store_memory higher or train.store false"
        with removing(path):
            with reporting_disk_errors(path, remedy):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    # A mapped page that the disk has no room for would end the process when it is written.
                    os.posix_fallocate(file.fileno(), 0, size)
                values = torch.from_file(str(path), shared=True, size=count, dtype=dtype)
            ranks.barrier()
        return values, local == 0
