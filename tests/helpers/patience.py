"""Waits that end by what processes do and not by the clock, for machines that are busy with other programs."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

STALLED_LOOKS, LEAST_WORK = 120, 1.0
"""A process and those below it hang if, in so many looks a second apart, they use less CPU time than this, seconds."""
MOST_LOOKS = 1800
"""For processes that hang and use CPU time."""


class Patience:
    """Watches a process and all below it, and says when they hang.

    Looks are counted and not seconds: on a machine that is out of memory for minutes, this process stands still as well.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._looked = pid, time.monotonic()
        self._looks, self._seen, self._work = 0, 0, 0.0

    def hangs(self) -> bool:
        """Whether the processes have done nothing for STALLED_LOOKS, or have not ended after MOST_LOOKS."""
        if time.monotonic() - self._looked > 1:
            work = cpu_seconds(self._pid)
            self._looks += 1
            if abs(work - self._work) >= LEAST_WORK:  # less than before where one of them has ended
                self._seen, self._work = self._looks, work
            self._looked = time.monotonic()
        return self._looks - self._seen > STALLED_LOOKS or self._looks > MOST_LOOKS


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
