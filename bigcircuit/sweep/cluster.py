"""The Ray cluster of a sweep, and how many model workers it has room for."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import ray

from bigcircuit.errors import UserError
from bigcircuit.sweep.config import Sweep, SweepSettings

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors without GPUs see them, as Ray is going to do

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # see Messages in run.py
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

_ANSWERS = 5.0
"""Seconds that a cluster has to answer."""


class Room(NamedTuple):
    """What model workers take of the cluster."""

    workers: int
    cpus: int
    """Of every rank."""
    gpus: float
    """Of every rank."""


def room_for(settings: SweepSettings, trials: int, grows: bool) -> Room:
    """As many workers as the cluster holds, but no more than the trials need.

    grows: whether machines may come that the cluster does not have yet, for workers that are asked for by number. Raises
    UserError where not one worker fits, or fewer than are asked for fit and nothing is to come.
    """
    there, ranks = ray.cluster_resources(), settings.ranks
    gpus = settings.gpus if settings.gpus is not None else float(there.get("GPU", 0) >= ranks)
    cpus = settings.cpus or 1
    share = there.get("CPU", 0) // (cpus * ranks)
    if gpus:
        share = min(share, there.get("GPU", 0) // (gpus * ranks))
    least = settings.workers or 1
    if share < least and not (grows and settings.workers):
        raise UserError(
            f"sweep: {least} worker(s) of {ranks} rank(s) need {cpus * ranks * least} CPUs and {gpus * ranks * least:g} GPUs, "
            f"there are {there.get('CPU', 0):g} and {there.get('GPU', 0):g}; lower sweep.workers, sweep.ranks, sweep.cpus or "
            "sweep.gpus"
        )
    workers = settings.workers or int(min(share, -(-trials // settings.slots)))
    if settings.cpus is None and not gpus and len(ray.nodes()) == 1:
        cpus = max(1, int(there.get("CPU", 0)) // (workers * ranks))
    return Room(workers, cpus, gpus)


@contextmanager
def cluster(address: str | None, asked: Sweep) -> Iterator[None]:
    """Join a Ray cluster, or start Ray on this machine for as long as the sweep runs."""
    os.environ |= _QUIET
    quiet = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address is not None:
        _reach(address)
    try:
        if address is None:
            with _private_token():
                ray.init("local", num_cpus=cores(asked), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        where = "this machine" if address is None else f"--address {address}"
        raise UserError(
            f"{where}: no Ray cluster can be joined there ({str(error).splitlines()[0]}); is it running, and is its token "
            "in RAY_AUTH_TOKEN or ~/.ray/auth_token?"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _private_token() -> Iterator[None]:
    """Inside, Ray may write its token, which others of this machine are not to read."""
    token = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        token.parent.mkdir(mode=0o700, exist_ok=True)
    yield
    with suppress(OSError):
        token.chmod(0o600)


def _reach(address: str) -> None:
    """Raises UserError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # `auto`, which Ray looks up
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nobody answers there ({error}); is the Ray cluster running, and can it be reached from here?"
        ) from error


def cores(asked: Sweep) -> int:
    """CPUs of this machine, or, where workers and ranks are asked for that need more, so many."""
    settings = asked.settings
    return max(len(os.sched_getaffinity(0)), (settings.workers or 1) * settings.ranks * (settings.cpus or 1))
