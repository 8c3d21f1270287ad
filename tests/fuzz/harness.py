"""Run inputs and hold them to what is promised: only the project's errors, bounded time and memory, nothing written elsewhere."""

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bigcircuit.errors import ReportedError

MOST_SECONDS, MOST_BYTES = 5.0, 2**30
"""CPU seconds and additional memory of an input."""
_LONGEST_MESSAGE = 5000
_WRITING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
"""Audit events whose first argument, or first two, are changed."""

Kind = Callable[[Random, Path], Callable[[], Any]]
"""Makes the input of a random generator in a folder, and returns what reads the input."""


class Failure(NamedTuple):
    """An input that broke a promise."""

    kind: str
    seed: int
    what: str


class TooSlow(BaseException):
    """The input took more CPU time than any may."""


class _Guard:
    """Notes what is written outside of a folder, by an audit hook: hooks cannot be removed, so there is one for all inputs."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = arguments
            changed = [path] if isinstance(path, (str, bytes)) and _writes(mode, flags) else []
        else:
            changed = [one for one in arguments[:2] if isinstance(one, (str, bytes))] if event in _WRITING else []
        for path in changed:
            full = os.path.abspath(os.fsdecode(path))
            if not full.startswith((self.folder, "/dev/", "/proc/")) and "__pycache__" not in full:
                self.outside.append(f"{event} {full}")


def _writes(mode: Any, flags: Any) -> bool:
    return (
        bool(set("wax+") & set(mode)) if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )


_GUARD: list[_Guard] = []


def run_input(name: str, kind: Kind, seed: int, folder: Path) -> Failure | None:
    """Make the input of a kind and a seed in an empty folder, read it, and return the promise that it breaks, if any."""
    if not _GUARD:
        _GUARD.append(_Guard())
    guard, before = _GUARD[0], Path.cwd()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    read = kind(Random(f"{name} {seed}"), folder)
    guard.folder, guard.outside = str(folder.resolve()), []
    _reset_peak()
    memory, start = _memory("VmRSS"), time.process_time()
    problem = None
    os.chdir(folder)
    try:
        with _limited(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            read()
    except (ReportedError, SystemExit) as error:
        if len(str(error)) > _LONGEST_MESSAGE:
            problem = f"a message of {len(str(error)):,} characters"
    except TooSlow:
        problem = f"more than {MOST_SECONDS:g} s of CPU"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [one for one in traceback.extract_tb(error.__traceback__) if "bigcircuit" in one.filename]
        place = ours[-1] if ours else place
        problem = f"{type(error).__name__}: {str(error)[:100]!r} at {Path(place.filename).name}:{place.lineno}"
    finally:
        os.chdir(before)
        guard.folder = None
    peak = _memory("VmHWM") - memory
    if guard.outside:
        problem = f"writes outside its folder: {guard.outside[0]}"
    elif problem is None and peak > MOST_BYTES:
        problem = f"{peak / 2**20:,.0f} MiB"
    elif problem is None and time.process_time() - start > MOST_SECONDS:
        problem = f"{time.process_time() - start:.1f} s of CPU"
    return None if problem is None else Failure(name, seed, problem)


@contextmanager
def _limited() -> Iterator[None]:
    """Raise TooSlow after the CPU seconds an input may take, and MemoryError far above the memory it may take."""

    def stop(*_: Any) -> None:
        raise TooSlow

    old = signal.signal(signal.SIGPROF, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 4 * MOST_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, old)


def _memory(name: str) -> int:
    """Read a figure of this process from the kernel, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
