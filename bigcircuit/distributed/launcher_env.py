"""Read the environment variables of launchers, and choose the network interface of gloo, which launchers do not."""

import os
import socket
from typing import NamedTuple

import psutil

from bigcircuit.errors import UserError

_PROCESS_COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables of launchers that start several processes without setting RANK."""


class LauncherEnv(NamedTuple):
    """Number of this process among the processes that a launcher started."""

    rank: int
    world_size: int
    local_rank: int
    """Number of this process on its host."""


def read_launcher_env() -> LauncherEnv:
    """Read rank and world size from the environment; without a launcher, rank 0 of 1.

    Raises UserError where a launcher started several processes without a rank for each.
    """
    variables = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
    if len(variables) == 1:
        raise UserError(
            f"{variables[0]} is set and the other of RANK and WORLD_SIZE is not; start with deepspeed or torchrun"
        )
    if not variables:
        if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
            raise UserError(
                "accelerate launch --cpu tells its processes no rank, so each would believe it is alone; give it --multi_gpu "
                "(on CPU too), or start with deepspeed or torchrun"
            )
        for name in _PROCESS_COUNTS:
            if int(os.environ.get(name, "1")) > 1:
                raise UserError(
                    f"started as one of {os.environ[name]} processes without a RANK; start with deepspeed or torchrun"
                )
    return LauncherEnv(
        int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    )


def ranks_on_this_host(world_size: int) -> int:
    """Return how many ranks the launcher has started on this host; all where it does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size)


def crowding(ranks: int, threads: int, cores: int) -> str | None:
    """Return a warning where ranks on the CPU of one host have more threads than there are cores, else None.

    ranks: on this host; threads: of each rank; cores: that this process may use.
    """
    if ranks * threads <= cores:
        return None
    each = f"{ranks} ranks" + (f" with {threads} threads each" if threads > 1 else "")
    if ranks > cores:
        remedy = f"start {cores} or fewer (--num_accelerators of deepspeed, --nproc-per-node of torchrun)"
    else:
        remedy = f"set OMP_NUM_THREADS to {cores // ranks}"
    return f"warning: {each} share {cores} CPU core(s) of this host, and every sum waits for the slowest rank; {remedy}"


def set_gloo_interface(world_size: int) -> None:
    """Set GLOO_SOCKET_IFNAME to the network interface with the route to rank 0's host.

    By default gloo announces the address that the host's own name resolves to, which is often a loopback address that no
    other host can reach. Raises UserError where MASTER_ADDR itself is a loopback address although there are several hosts.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, *_, destination = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(destination)  # chooses a route and sends nothing
        own = probe.getsockname()[0]
    if own.startswith("127.") and ranks_on_this_host(world_size) < world_size:
        raise UserError(
            f"MASTER_ADDR {address} is a loopback address on this host, which no other host can reach; give the launcher "
            "an address of the network, or set GLOO_SOCKET_IFNAME"
        )
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
