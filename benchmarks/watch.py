"""Run a command and measure its processes from outside: memory by kind, bytes read, and when each update was done."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from bigcircuit.io.run_dir import read_metrics

EVERY = 0.05
"""Seconds between two samples."""
CHILDREN_EVERY = 20
"""Samples between two searches for new processes."""


class Update(NamedTuple):
    """When an update was done."""

    seconds: float
    """Since the start of the command."""
    bytes_read: int
    """From the disk, by all processes until then."""


class Seen(NamedTuple):
    """Measurements of a command."""

    exit_code: int
    seconds: float
    anonymous: int
    """Most bytes of anonymous memory of any one process."""
    mapped: int
    """Most bytes of mapped files that any one process held in memory."""
    updates: dict[int, Update]
    """Step -> its end, of the steps made by this command."""
    output: str


def memory_kinds(status: str) -> tuple[int, int]:
    """Read the bytes of anonymous memory and of mapped files in memory from the text of /proc/PID/status.

    Both are 0 for a process that has ended but was not waited for: its file has no such lines.
    """
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    anonymous, mapped = (int(lines.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return anonymous, mapped


def bytes_read(io: str) -> int:
    """Read from the text of /proc/PID/io how many bytes a process had fetched from the disk, mapped files included."""
    return int(dict(line.split(":", 1) for line in io.splitlines())["read_bytes"])


def updates_in(metrics: Path) -> set[int]:
    """Return the steps whose updates are in metrics.jsonl."""
    return {row["step"] for row in read_metrics(metrics) if "validation.kl" not in row}


def watch(
    command: Sequence[str],
    metrics: Path,
    *,
    root: Path,
    environment: Mapping[str, str] | None = None,
    kill_after: int | None = None,
) -> Seen:
    """Run a command to its end, with samples of all its processes every 50 ms.

    metrics: metrics.jsonl of the run, with a line an update. root: folder to run in. kill_after: update after which all processes
    are killed with SIGKILL.
    """
    before, done = updates_in(metrics), {}
    anonymous: dict[int, int] = {}
    mapped: dict[int, int] = {}
    read: dict[int, int] = {}
    size, samples, start = -1, 0, time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        running = subprocess.Popen(
            command,
            cwd=root,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        pids = [running.pid]
        try:
            while running.poll() is None:
                if samples % CHILDREN_EVERY == 0:
                    pids = _tree(running.pid)
                samples += 1
                for pid in pids:
                    with suppress(OSError):  # the process has ended
                        now = memory_kinds(Path(f"/proc/{pid}/status").read_text())
                        anonymous[pid] = max(now[0], anonymous.get(pid, 0))
                        mapped[pid] = max(now[1], mapped.get(pid, 0))
                        read[pid] = bytes_read(Path(f"/proc/{pid}/io").read_text())
                if metrics.exists() and metrics.stat().st_size != size:
                    size = metrics.stat().st_size
                    now_there = updates_in(metrics)
                    before &= now_there  # a resumed run drops the lines after its checkpoint
                    for step in now_there - before - set(done):
                        done[step] = Update(time.monotonic() - start, sum(read.values()))
                if kill_after in done:
                    break
                time.sleep(EVERY)
        finally:  # also of an interrupt of this process
            if running.poll() is None:
                for pid in _tree(running.pid):  # not a process group: ranks of torchrun have their own
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                running.wait()
        seconds = time.monotonic() - start
        for step in updates_in(metrics) - before - set(done):  # of a last update that was quick
            done[step] = Update(seconds, sum(read.values()))
        output.seek(0)
        text = output.read()
    return Seen(
        exit_code=running.returncode,
        seconds=seconds,
        anonymous=max(anonymous.values(), default=0),
        mapped=max(mapped.values(), default=0),
        updates=dict(sorted(done.items())),
        output=text,
    )


def _tree(pid: int) -> list[int]:
    """Return the ids of a process and of all below it."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return [pid]
