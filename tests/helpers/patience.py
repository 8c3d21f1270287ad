"""Waits that end by what processes do and not by the clock, for machines that are busy with other programs."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

STALLED_SECONDS, LEAST_WORK = 120.0, 1.0
"""A process and those below it hang if, for so many seconds, they use less CPU time than this, seconds."""
MOST_SECONDS = 1800.0
"""For processes that hang and use CPU time."""


class Patience:
    """Watches a process and all below it, and says when they hang."""

    def __init__(self, pid: int) -> None:
        self._pid, self._began = pid, time.monotonic()
        self._seen, self._work, self._looked = self._began, 0.0, self._began

    def hangs(self) -> bool:
        """Whether the processes have done nothing for STALLED_SECONDS, or have not ended after MOST_SECONDS."""
        now = time.monotonic()
        if now - self._looked > 1:
            self._looked, work = now, cpu_seconds(self._pid)
            if abs(work - self._work) >= LEAST_WORK:  # less than before where one of them has ended
                self._seen, self._work = now, work
        return now - self._seen > STALLED_SECONDS or now - self._began > MOST_SECONDS


def cpu_seconds(pid: int) -> float:
    """Sum the CPU time of a process and of all below it, those that it has waited for included."""
    total = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += sum(one.cpu_times()[:4])
    return total


def wait_for_end(process: "subprocess.Popen[str]", said: Callable[[], str] = str) -> str:
    """Wait for the end of a process and return what it has written to a pipe. Fails if the process hangs.

    said: its output where that goes to a file, for the message.
    """
    patience = Patience(process.pid)
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=1)[0] or ""
        assert not patience.hangs(), f"nothing happens:\n{said()}"
