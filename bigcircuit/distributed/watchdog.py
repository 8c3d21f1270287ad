"""Notice within seconds that a rank has died or hangs, and end the job with its name and its last line.

Every other rank has a connection to the first one, on which both say twice a second how they are. A rank is lost when its
connection breaks without a goodbye, when it says nothing for SILENCE seconds, or when it neither computes nor reads nor
reports nor waits for others for that long. Slow work is not a hang: it takes processor time.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

_BEAT = 0.5
SILENCE = 15.0
"""Seconds."""
EXIT_CODE = 5
_IDLE_SHARE = 0.02
"""A process that uses less of one core than this does nothing: the beat itself uses less."""
_WAITING = ("torch/distributed/", "deepspeed/comm/", "deepspeed/runtime/zero/partition", "torch/utils/cpp_extension")
"""Code that waits for other ranks, or for a compiler."""


_FAMILY: dict[str, Any] = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}


def connect_ranks(rank: int, size: int, host: str, agree: Callable[[int], int]) -> dict[int, socket.socket]:
    """Connections of this rank by the rank at the other end. agree: hands the first rank's number to all ranks."""
    if rank:
        link = socket.create_connection((host, agree(0)), timeout=60)
        link.sendall(f"{rank:8d}".encode())
        return {0: link}
    with socket.create_server(("", 0), backlog=size, **_FAMILY) as server:
        server.settimeout(60)
        agree(server.getsockname()[1])
        links = [server.accept()[0] for _ in range(size - 1)]
    return {int(link.recv(8, socket.MSG_WAITALL)): link for link in links}


class Watchdog:
    """Beats for this rank and listens to others, in a thread of its own that ends the process when one is lost."""

    def __init__(self, rank: int, links: Mapping[int, socket.socket]) -> None:
        self._rank = rank
        self._others = {other: _Peer(link) for other, link in links.items()}
        self._line, self._notes = "starting", 0
        self._stop = threading.Event()
        self._activity = _Activity()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def note(self, line: str) -> None:
        """What this rank did last; it is what is shown if this rank is lost."""
        self._line, self._notes = line, self._notes + 1

    def leave(self, reason: str = "done", code: int = 0) -> bool:
        """Say goodbye: this rank ends for a reason it knows. Returns whether all others could be told."""
        self._stop.set()
        return self._tell(reason, code)

    def blame(self) -> None:
        """After a failed communication: wait for the process to be ended with the name of the rank that caused it.

        Returns if all ranks turn out to be well.
        """
        self._thread.join(1.5 * SILENCE)

    def _tell(self, left: str = "", code: int = 0) -> bool:
        beat = {"notes": self._notes, "line": self._line, "left": left, "code": code, **self._activity.look()}
        message = json.dumps(beat).encode() + b"\n"
        return all([other.send(message) for other in self._others.values()])

    def _run(self) -> None:
        following = time.monotonic()
        while not self._stop.is_set():
            if time.monotonic() >= following:
                self._tell()
                following += _BEAT
            open_ones = [other for other in self._others.values() if not other.closed]
            if not open_ones:
                self._stop.wait(0.2)
            for other in select.select(open_ones, [], [], 0.2)[0]:
                other.listen()
            for rank, other in self._others.items():
                found = other.verdict()
                if found is not None and not self._stop.is_set():
                    self._end(rank, other.beat, found)

    def _end(self, other: int, beat: Mapping[str, Any], found: str) -> None:
        left, code = beat.get("left", ""), beat.get("code") or EXIT_CODE
        last = "" if left else f"; its last line: {beat.get('line', 'none')}{beat.get('at', '')}"
        where = f" on {beat['host']}" if beat else ""
        message = f"bigcircuit: rank {other}{where} {found}{last}; the same command goes on from the last checkpoint"
        # The first rank speaks; if it is itself the one that is lost and has not spoken, the second one does.
        if self._rank == 0 or (self._rank == 1 and not left):
            sys.stderr.write(message + "\n")
            sys.stderr.flush()
        if not left and beat.get("place") == _PLACE:
            with suppress(OSError):
                os.kill(beat["pid"], signal.SIGKILL)  # a launcher that asks politely would wait for it in vain
        self.leave(message, code)
        time.sleep(0.5)  # let the others read why, before they see the connection break
        os._exit(code)


class _Peer:
    """What is known of the rank at the other end of a connection."""

    def __init__(self, link: socket.socket) -> None:
        link.settimeout(1.0)
        self._link = link
        self._text = b""
        self._heard = self._active = time.monotonic()
        self.closed = False
        self.beat: dict[str, Any] = {}

    def fileno(self) -> int:
        """For select."""
        return self._link.fileno()

    def send(self, message: bytes) -> bool:
        """Whether the message could be handed to the system."""
        try:
            self._link.sendall(message)
        except OSError:
            return False
        return True

    def listen(self) -> None:
        """Take in what has come."""
        try:
            content = self._link.recv(1 << 16)
        except OSError:
            content = b""
        self.closed = not content
        *lines, self._text = (self._text + content).split(b"\n")
        for line in lines:
            beat, self._heard = json.loads(line), time.monotonic()
            if beat["waits"] or beat["active"] or beat["notes"] != self.beat.get("notes"):
                self._active = self._heard
            self.beat = beat

    def verdict(self) -> str | None:
        """What is wrong with it, if anything."""
        now, left = time.monotonic(), self.beat.get("left")
        if left == "done":
            return None
        if left:
            return f"stopped: {left}"
        if self.closed:
            return "died"
        if now - self._heard > SILENCE:
            return f"has not been heard of for {SILENCE:.0f} s"
        if now - self._active > SILENCE:
            return f"hangs: it has done nothing for {SILENCE:.0f} s"
        return None


def _place() -> str:
    """Two processes with the same place see the same process ids."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"


_PLACE = _place()


class _Activity:
    """Whether this process does anything, seen from its watching thread."""

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._before = self._numbers()
        self._beats = 0

    def look(self) -> dict[str, Any]:
        """Since the last look: has it computed or read; does it wait for others; where in our own code is it."""
        before, self._before = self._before, self._numbers()
        seconds, busy, read = (b - a for a, b in zip(before, self._before, strict=True))
        self._beats += 1
        frames = list(_frames(sys._current_frames().get(self._main)))
        ours = next((f for f in frames if "/bigcircuit/" in f.f_code.co_filename), None)
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "place": _PLACE,
            "beats": self._beats,
            "active": busy > _IDLE_SHARE * seconds or read > 0,
            "waits": any(part in frame.f_code.co_filename for frame in frames[:8] for part in _WAITING),
            "at": f" ({Path(ours.f_code.co_filename).name}:{ours.f_lineno})" if ours else "",
        }

    def _numbers(self) -> tuple[float, float, float]:
        try:
            read = float(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])
        except (OSError, IndexError):
            read = 0.0
        return time.monotonic(), time.process_time(), read


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
