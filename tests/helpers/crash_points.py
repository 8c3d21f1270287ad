"""Crashes at every operation on files, made in forked child processes."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any


class _Counted:
    """A file whose writes are counted as operations."""

    def __init__(self, file: IO[Any], count: Callable[..., None]) -> None:
        self._file, self._count = file, count

    def write(self, content: Any) -> int:
        self._count("write", lambda: (self._file.write(content[: len(content) // 2]), self._file.flush()))
        return self._file.write(content)

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Crash:
    """Hooks that end this process, as a power cut would, at the n-th write, sync, rename, creation or removal of a file.

    Half of what was written and not synced is lost. For a forked child process, because the hooks cannot be removed.
    """

    def __init__(self, number: int, report: int) -> None:
        """number: n. report: a file descriptor that gets the name of the operation."""
        self._left, self._report = number, report
        self._unsynced: dict[int, tuple[int, int]] = {}
        sys.dont_write_bytecode = True
        sys.addaudithook(self._hook)
        self._sync, self._open = os.fsync, Path.open
        os.fsync, Path.open = (
            self._counted_sync,
            lambda path, *arguments, **options: self._counted_open(path, *arguments, **options),
        )

    def _counted_sync(self, handle: int) -> None:
        self._count("sync")
        self._sync(handle)
        self._unsynced.pop(os.fstat(handle).st_ino, None)

    def _counted_open(self, path: Path, mode: str = "r", **options: Any) -> Any:
        file = self._open(path, mode, **options)
        if mode[0] == "r":
            return file
        found = os.fstat(file.fileno())
        self._unsynced[found.st_ino] = (os.dup(file.fileno()), found.st_size)
        return _Counted(file, self._count)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            self._count(event.removeprefix("os."))
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and "/dev/" not in str(arguments[0]):
            self._count("open")

    def _count(self, operation: str, half: Callable[[], object] = lambda: None) -> None:
        self._left -= 1
        if self._left == 0:
            half()
            for handle, safe in self._unsynced.values():
                os.ftruncate(handle, (safe + os.fstat(handle).st_size) // 2)
            os.write(self._report, operation.encode())
            os._exit(9)


def crash_everywhere(
    action: Callable[[], object], prepare: Callable[[], None], first: int = 1, every: int = 1
) -> Iterator[str]:
    """Crash at the first operation of `action`, at the next, ..., each in a child process of its own, until `action` succeeds.

    prepare: called before each. first, every: number of the first operation, and the step to the next.
    Yields the name of the operation after each crash.
    """
    for number in count(first, every):
        prepare()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                Crash(number, writing)
                action()
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            operation = pipe.read().decode()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        assert code == 9, f"the child failed by itself, before operation {number}"
        yield operation
