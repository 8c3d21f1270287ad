"""Notice within seconds that a rank has died or hangs, and end the job with the rank's name and its last line.

Every other rank has a connection to rank 0, on which both send a heartbeat twice a second. A rank is lost when its connection
breaks without a closing message, when it sends no heartbeat for TIMEOUT seconds, or when it neither computes nor reads nor
reports progress nor waits for other ranks for that long. Slow work is not a hang: it uses processor time.

torchrun's agent sees that a process has exited, but does not distinguish a hang from slow work: a rank that hangs would keep the
other ranks in a collective call until the call's timeout of ten minutes or more.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from bigcircuit.distributed.rendezvous import Connection

_INTERVAL = 0.5
"""Seconds between heartbeats."""
TIMEOUT = 15.0
"""Seconds without a heartbeat, or without any activity, after which a rank is lost."""
EXIT_CODE = 5
_IDLE_SHARE = 0.02
"""A process that uses less of one core than this is idle."""
_OBSERVERS = ("watchdog", "watch-memory", "progress")
"""Names of threads that only observe the work: on their own they use up to 3% of a core."""
_WAITING = ("torch/distributed/", "deepspeed/comm/", "deepspeed/runtime/zero/partition", "torch/utils/cpp_extension")
"""Code that waits for other ranks, or for a compiler."""


class Watchdog:
    """Send this rank's heartbeats and check those of its peers, in a thread that ends the process when a peer is lost."""

    def __init__(self, rank: int, connections: Mapping[int, Connection]) -> None:
        self._rank = rank
        self._peers = {peer: _Peer(connection) for peer, connection in connections.items()}
        self._status, self._status_count, self._error = "starting", 0, ""
        self._stop = threading.Event()
        self._activity = _Activity()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def set_status(self, line: str) -> None:
        """Store what this rank did last; peers print this line if this rank is lost."""
        self._status, self._status_count = line, self._status_count + 1

    def close(self, reason: str = "done", code: int = 0) -> bool:
        """Announce that this rank exits.

        reason: "done", or the error that the peers print. code: exit code of the peers.
        Returns whether the announcement could be sent to all peers.
        """
        self._stop.set()
        return self._send_heartbeat(reason, code)

    def wait_for_verdict(self, error: str) -> None:
        """After an error, wait until the watchdog ends the process with the name of the rank whose loss has caused it.

        Returns where no rank turns out to be lost, on rank 0 as soon as all ranks have an error of their own.
        """
        self._error, until = error, time.monotonic() + 1.5 * TIMEOUT
        while time.monotonic() < until and not (
            self._rank == 0 and all(p.heartbeat.get("error") for p in self._peers.values())
        ):
            time.sleep(0.1)

    def _send_heartbeat(self, reason: str = "", code: int = 0) -> bool:
        heartbeat = {"status_count": self._status_count, "status": self._status, "reason": reason, "code": code,
                     "error": self._error, **self._activity.sample()}  # fmt: skip
        message = json.dumps(heartbeat).encode() + b"\n"
        return all([peer.send(message) for peer in self._peers.values()])

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            if time.monotonic() >= due:
                self._send_heartbeat()
                due += _INTERVAL
            connected = [peer for peer in self._peers.values() if not peer.closed]
            if not connected:
                self._stop.wait(0.2)
            for peer in select.select(connected, [], [], 0.2)[0]:
                peer.receive()
            for rank, peer in self._peers.items():
                failure = peer.failure()
                if failure is not None and not self._stop.is_set():
                    self._end(rank, peer, failure)

    def _end(self, rank: int, peer: "_Peer", failure: str) -> None:
        """Print what happened to a lost rank, pass it on to the peers and exit."""
        heartbeat = peer.heartbeat
        reason, code = heartbeat.get("reason", ""), heartbeat.get("code") or EXIT_CODE
        last = "" if reason else f"; its last line: {heartbeat.get('status', 'none')}{heartbeat.get('at', '')}"
        where = f" on {heartbeat['host']}" if heartbeat else ""
        message = f"bigcircuit: rank {rank}{where} {failure}{last}; the same command goes on from the last checkpoint"
        # Rank 0 prints; if rank 0 itself is lost and has printed nothing, rank 1 prints.
        if self._rank == 0 or (self._rank == 1 and not reason):
            sys.stderr.write(message + "\n")
            sys.stderr.flush()
        if not reason and heartbeat.get("pid_namespace") == _PID_NAMESPACE:
            with suppress(OSError):
                os.kill(peer.pid, signal.SIGKILL)  # a launcher would wait in vain for an answer to SIGTERM
        self.close(message, code)
        time.sleep(0.5)  # let the peers read the reason before they see the connection break
        os._exit(code)


class _Peer:
    """Rank at the other end of a connection: its last heartbeat and when it was last active."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self.pid = connection
        self._connection.settimeout(1.0)
        self._unfinished = b""
        self._last_heartbeat = self._last_activity = time.monotonic()
        self.closed = False
        self.heartbeat: dict[str, Any] = {}

    def fileno(self) -> int:
        """Return the socket's file descriptor, for select."""
        return self._connection.fileno()

    def send(self, message: bytes) -> bool:
        """Send a message. Returns whether the operating system took it."""
        try:
            self._connection.sendall(message)
        except OSError:
            return False
        return True

    def receive(self) -> None:
        """Read the heartbeats that have arrived."""
        try:
            content = self._connection.recv(1 << 16)
        except OSError:
            content = b""
        self.closed = not content
        *lines, self._unfinished = (self._unfinished + content).split(b"\n")
        for line in lines:
            heartbeat, self._last_heartbeat = json.loads(line), time.monotonic()
            if (
                heartbeat["waits"]
                or heartbeat["active"]
                or heartbeat["status_count"] != self.heartbeat.get("status_count")
            ):
                self._last_activity = self._last_heartbeat
            self.heartbeat = heartbeat

    def failure(self) -> str | None:
        """Return what is wrong with the rank, or None."""
        now, reason = time.monotonic(), self.heartbeat.get("reason")
        if reason == "done":
            return None
        if reason:
            return f"stopped: {reason}"
        if self.closed:
            return "died"
        if now - self._last_heartbeat > TIMEOUT:
            return f"has not been heard of for {TIMEOUT:.0f} s"
        if now - self._last_activity > TIMEOUT and not self.heartbeat.get("error"):  # it waits for the verdict
            return f"hangs: it has done nothing for {TIMEOUT:.0f} s"
        return None


def _pid_namespace() -> str:
    """Return a name that is the same for two processes exactly if they see the same process ids."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"


_PID_NAMESPACE = _pid_namespace()


class _Activity:
    """Measure whether this process's main thread works, from the watchdog's thread."""

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._before = self._counters()

    def sample(self) -> dict[str, Any]:
        """Return the activity since the last sample.

        "active": whether the process has computed or read; "waits": whether it waits for other ranks; "at": its place in our
        own code, as " (file:line)".
        """
        before, self._before = self._before, self._counters()
        seconds, busy, read = (b - a for a, b in zip(before, self._before, strict=True))
        frames = list(_frames(sys._current_frames().get(self._main or 0)))
        own = next((f for f in frames if "/bigcircuit/" in f.f_code.co_filename), None)
        return {
            "host": socket.gethostname(),
            "pid_namespace": _PID_NAMESPACE,
            "active": busy > _IDLE_SHARE * seconds or read > 0,
            "waits": any(part in frame.f_code.co_filename for frame in frames[:8] for part in _WAITING),
            "at": f" ({Path(own.f_code.co_filename).name}:{own.f_lineno})" if own else "",
        }

    def _counters(self) -> tuple[float, float, float]:
        """Return clock, s; processor time without that of observing threads, s; bytes read."""
        try:
            read = float(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])
        except (OSError, IndexError):
            read = 0.0
        return time.monotonic(), time.process_time() - _observing_time(), read


def _observing_time() -> float:
    """Return the processor time of the threads that only observe, s; 0 where the system does not count it by thread."""
    seconds = 0.0
    for thread in threading.enumerate():
        if thread.name in _OBSERVERS:
            with suppress(OSError):
                seconds += int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) / 1e9
    return seconds


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back
