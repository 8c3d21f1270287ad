"""Join or start the Ray cluster of a sweep, and decide how many model workers it holds."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray

from bigcircuit.errors import UserError, first_line
from bigcircuit.sweep.cluster_monitor import ending_when_lost
from bigcircuit.sweep.config import Sweep, SweepSettings

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors without GPUs see them, as Ray is going to do
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15: another program would take the workers' cores

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # see StopCallback in run.py
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

_CONNECT_SECONDS = 5.0
"""Timeout of the first connection to a cluster."""


class WorkerResources(NamedTuple):
    """Resources of the cluster that model workers take."""

    workers: int
    cpus: int
    """CPU cores per rank."""
    gpus: float
    """GPUs per rank."""
    device: str = "auto"
    """`model.device`."""


def worker_resources(settings: SweepSettings, trials: int, can_grow: bool, device: str = "auto") -> WorkerResources:
    """Return resources for as many workers as the cluster holds, but no more than the trials need.

    trials: number of trials; can_grow: whether machines may join the cluster later, for workers that `sweep.workers` asks for.
    device: `model.device`. Raises UserError where not one worker fits, or fewer than `sweep.workers` fit and the cluster cannot
    grow.
    """
    available, ranks = ray.cluster_resources(), settings.ranks
    if settings.gpus is not None:
        gpus = settings.gpus
    else:
        gpus = {"cpu": 0.0, "cuda": 1.0}.get(device, float(available.get("GPU", 0) >= ranks))
    cpus = settings.cpus or 1
    fitting = available.get("CPU", 0) // (cpus * ranks)
    if gpus:
        fitting = min(fitting, available.get("GPU", 0) // (gpus * ranks))
    least = settings.workers or 1
    if fitting < least and not (can_grow and settings.workers):
        raise UserError(
            f"sweep: {least} worker(s) of {ranks} rank(s) need {cpus * ranks * least} CPUs and {gpus * ranks * least:g} GPUs, "
            f"there are {available.get('CPU', 0):g} and {available.get('GPU', 0):g}; lower sweep.workers, sweep.ranks, "
            "sweep.cpus or sweep.gpus"
        )
    workers = settings.workers or int(min(fitting, -(-trials // settings.slots)))
    if settings.cpus is None and not gpus and len(ray.nodes()) == 1:
        share = max(1, int(available.get("CPU", 0)) // (workers * ranks))
        cpus = min(asked_threads() or share, share)
    return WorkerResources(workers, cpus, gpus, device)


def asked_threads() -> int | None:
    """Return the number of threads in OMP_NUM_THREADS, of nested numbers the first; None where it is unset or no number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


@contextmanager
def cluster(address: str | None, sweep: Sweep) -> Iterator[None]:
    """Join the Ray cluster at an address, or start Ray on this machine; leave or stop it at the end.

    Raises UserError, and ClusterLost (see cluster_monitor.py).
    """
    os.environ |= _QUIET
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address is not None:
        _check_reachable(address)
    try:
        with _same_signal_handlers():
            if address is None:
                with _private_token(), _sessions_of_their_own():
                    ray.init("local", num_cpus=core_count(sweep), include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
    except Exception as error:  # a bare one where Ray's processes take more than 30 s to start
        raise UserError(_not_joined(address, error)) from error
    try:
        with ending_when_lost():
            yield
    finally:
        ray.shutdown()


def _not_joined(address: str | None, error: Exception) -> str:
    """Return the error that Ray's processes cannot be started here or joined elsewhere, from what `ray.init` has raised."""
    reason, token = first_line(error), "its token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
    if address is not None:
        return f"--address {address}: no Ray cluster can be joined there ({reason}); is it running, and is {token}?"
    here = f"Ray cannot start on this machine ({reason})"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return f"{here}; its sockets and logs need a short path with free space: set RAY_TMPDIR, as to /tmp"
    return f"{here}; where other programs take all cores it gives up: try again later, and look whether {token} can be read"


@contextmanager
def _same_signal_handlers() -> Iterator[None]:
    """Restore this process's handler of SIGTERM, in whose place `ray.init` sets one that exits at once."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


_own_session = threading.Event()
"""Set while processes that this one forks are to live in sessions of their own."""


def _leave_session() -> None:
    if _own_session.is_set():
        os.setsid()


os.register_at_fork(after_in_child=_leave_session)


@contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """Start Ray's processes inside in sessions of their own, out of reach of a signal to this process's group.

    Batch systems, service managers and `timeout` send SIGTERM to the group; with Ray's processes gone no trial could be saved.
    Ray has no setting for it, and starts its processes by `fork`. On Linux they still end with this process, by PR_SET_PDEATHSIG;
    on macOS they end with their group, which they therefore keep.
    """
    if sys.platform == "linux":
        _own_session.set()
    try:
        yield
    finally:
        _own_session.clear()


@contextmanager
def _private_token() -> Iterator[None]:
    """Keep the token that Ray may write inside from other users of this machine."""
    token = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        token.parent.mkdir(mode=0o700, exist_ok=True)
    yield
    with suppress(OSError):
        token.chmod(0o600)


def _check_reachable(address: str) -> None:
    """Raises UserError where no process listens at HOST:PORT. Ray itself would retry for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # `auto`, which Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nobody answers there ({error}); is the Ray cluster running, and can it be reached from here?"
        ) from error


def core_count(sweep: Sweep) -> int:
    """Return the CPU cores of this machine, or those that the sweep's workers need if that is more."""
    settings = sweep.settings
    return max(len(os.sched_getaffinity(0)), (settings.workers or 1) * settings.ranks * (settings.cpus or 1))
