"""What launchers announce in the environment, and what they leave out."""

import os
import socket
from typing import NamedTuple

import psutil

from bigcircuit.errors import UserError

_COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Set by launchers that start several processes without telling torch which is which."""


class LaunchedAs(NamedTuple):
    """This process among those that a launcher started."""

    rank: int
    size: int
    local: int
    """Number of this process on its host."""


def launched_as() -> LaunchedAs:
    """Read what the launcher says; one process when none does. Raises UserError where several were started as if alone."""
    set_ones = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
    if len(set_ones) == 1:
        raise UserError(
            f"{set_ones[0]} is set and the other of RANK and WORLD_SIZE is not; start with deepspeed or torchrun"
        )
    if not set_ones:
        if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
            raise UserError(
                "accelerate launch --cpu tells its processes no rank, so each would believe it is alone; give it --multi_gpu "
                "(on CPU too), or start with deepspeed or torchrun"
            )
        for name in _COUNTS:
            if int(os.environ.get(name, "1")) > 1:
                raise UserError(
                    f"started as one of {os.environ[name]} processes without a RANK; start with deepspeed or torchrun"
                )
    return LaunchedAs(
        int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    )


def set_gloo_interface(size: int) -> None:
    """Tell gloo which network interface leads to the first host.

    Left alone it announces the address that the host's own name resolves to, which is often a loopback address that no other
    host can reach. Raises UserError where MASTER_ADDR itself is one although there are several hosts.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, *_, first = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(first)  # chooses a route and sends nothing
        own = probe.getsockname()[0]
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
    if own.startswith("127.") and here < size:
        raise UserError(
            f"MASTER_ADDR {address} is a loopback address on this host, which no other host can reach; give the launcher "
            "an address of the network, or set GLOO_SOCKET_IFNAME"
        )
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
