"""The Ray cluster of a sweep, and how many model workers it has room for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors without GPUs see them, as Ray is going to do

import ray

from bigcircuit.errors import UserError
from bigcircuit.sweep.settings import Sweep, SweepSettings

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # see stopped_by_signals
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Room(NamedTuple):
    """What model workers take of the cluster."""

    workers: int
    cpus: int
    """Of every rank."""
    gpus: float
    """Of every rank."""


def room_for(settings: SweepSettings, trials: int) -> Room:
    """As many workers as the cluster holds, but no more than the trials need. Raises UserError where not one fits."""
    there, ranks = ray.cluster_resources(), settings.ranks
    gpus = settings.gpus if settings.gpus is not None else float(there.get("GPU", 0) >= ranks)
    cpus = settings.cpus or 1
    share = there.get("CPU", 0) // (cpus * ranks)
    if gpus:
        share = min(share, there.get("GPU", 0) // (gpus * ranks))
    if settings.workers is None and share < 1:
        raise UserError(
            f"sweep: one worker of {ranks} rank(s) needs {cpus * ranks} CPUs and {gpus * ranks:g} GPUs, the cluster has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}; lower sweep.ranks, sweep.cpus or sweep.gpus"
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
    try:
        if address is None:
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


def cores(asked: Sweep) -> int:
    """CPUs of this machine, or, where workers and ranks are asked for that need more, so many."""
    settings = asked.settings
    return max(len(os.sched_getaffinity(0)), (settings.workers or 1) * settings.ranks * (settings.cpus or 1))
