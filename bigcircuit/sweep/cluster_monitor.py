"""Notice within seconds that the Ray cluster of a sweep is gone, and end the sweep's command with a line.

Ray itself waits a minute for a lost head process and then ends the driver without a word; Tune waits for ever for trials whose
raylet is gone.
"""

import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from bigcircuit.distributed.watchdog import EXIT_CODE
from bigcircuit.errors import ReportedError

_INTERVAL, _TIMEOUT = 1.0, 10.0
"""Seconds between two looks at the cluster's processes, and until one that does not answer counts as gone."""


class ClusterLost(ReportedError):
    """The Ray cluster of a sweep, or the sweep's scheduler actor, has died."""

    exit_code = EXIT_CODE

    def __init__(self, reason: str) -> None:
        super().__init__(f"sweep: {reason}; the same command goes on from the last checkpoints")


@contextmanager
def ending_when_lost() -> Iterator[None]:
    """End this process, with a line and exit code 5, when Ray's processes on the head node or on this node are gone.

    Raises ClusterLost where an actor of the sweep is lost and Ray's processes still answer.
    """
    addresses, closed = _addresses(), threading.Event()

    def watch() -> None:
        while not closed.wait(_INTERVAL):
            _end_if_lost(addresses, closed)

    thread = threading.Thread(target=watch, name="cluster-monitor", daemon=True)
    thread.start()
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise  # an error of our own code, which Ray passes on
    except ray.exceptions.RayError as error:
        _end_if_lost(addresses, closed)
        raise ClusterLost(f"Ray has lost a process of it ({str(error).strip().splitlines()[0]})") from error
    finally:
        closed.set()
        thread.join()


def _addresses() -> Mapping[str, tuple[str, int]]:
    """Return host and port of Ray's processes without which a driver cannot go on, by what they are."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return {
        "the head process of the Ray cluster": (host.strip("[]"), int(port)),
        "Ray's process on this machine (the raylet)": (own["NodeManagerAddress"], own["NodeManagerPort"]),
    }


def _end_if_lost(addresses: Mapping[str, tuple[str, int]], closed: threading.Event) -> None:
    """Print which process is gone and exit, if one is. Not by an exception: the main thread may wait for Ray for ever."""
    for name, address in addresses.items():
        try:
            socket.create_connection(address, timeout=_TIMEOUT).close()
        except OSError as error:
            if not closed.is_set():
                lost = ClusterLost(f"{name} is gone ({error.strerror or error})")
                sys.stderr.write(f"bigcircuit: {lost}\n")
                sys.stderr.flush()
                os._exit(lost.exit_code)
