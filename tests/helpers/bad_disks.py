"""Damaged checkpoint files, and small disks that are full or read-only."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bigcircuit.io import checkpoint
from tests.helpers.interrupted_runs import states_equal, states_of
from tests.helpers.launch import ROOT

STATE, MANIFEST = "state.safetensors", "state.json"
Damager = Callable[[Path, str, str, random.Random], None]
"""Arguments: folder of the checkpoints, name of the checkpoint to damage, name of another checkpoint, random generator."""


def _rewrite(path: Path, content: bytes) -> None:
    """Replace the content of a file; as a new file, because the old one may be a hard link to a file that has to stay."""
    path.unlink()
    path.write_bytes(content)


def _truncated(file: str) -> Damager:
    def damage(copy: Path, name: str, _: str, rng: random.Random) -> None:
        content = (copy / name / file).read_bytes()
        _rewrite(copy / name / file, content[: rng.randrange(len(content))])

    return damage


def _flipped(file: str, part: Callable[[bytes], range]) -> Damager:
    def damage(copy: Path, name: str, _: str, rng: random.Random) -> None:
        content = bytearray((copy / name / file).read_bytes())
        content[rng.choice(part(content))] ^= 1 << rng.randrange(8)
        _rewrite(copy / name / file, bytes(content))

    return damage


def _header(content: bytes) -> range:
    return range(8 + int.from_bytes(content[:8], "little"))


def _data(content: bytes) -> range:
    return range(_header(content).stop, len(content))


def _other_block(copy: Path, name: str, _: str, rng: random.Random) -> None:
    """Overwrite one sector of the tensor file with random bytes."""
    content = bytearray((copy / name / STATE).read_bytes())
    place = rng.randrange(0, len(content), 512)
    length = len(content[place : place + 512])
    content[place : place + 512] = rng.randbytes(length)
    _rewrite(copy / name / STATE, bytes(content))


def _longer(copy: Path, name: str, _: str, rng: random.Random) -> None:
    file = copy / name / rng.choice((STATE, MANIFEST))
    _rewrite(file, file.read_bytes() + rng.choice((b"\0", b" ", b"\n", rng.randbytes(100))))


def _of_another(file: str) -> Damager:
    def damage(copy: Path, name: str, other: str, _: random.Random) -> None:
        _rewrite(copy / name / file, (copy / other / file).read_bytes())

    return damage


def _exchanged(copy: Path, name: str, other: str, _: random.Random) -> None:
    """Put a copy of the other checkpoint under the name of this one."""
    shutil.rmtree(copy / name)
    shutil.copytree(copy / other, copy / name)


def _missing(file: str) -> Damager:
    return lambda copy, name, _, __: (copy / name / file).unlink()


DAMAGES: dict[str, Damager] = {
    "tensor file truncated": _truncated(STATE),
    "manifest truncated": _truncated(MANIFEST),
    "bit flipped in the header": _flipped(STATE, _header),
    "bit flipped in the data": _flipped(STATE, _data),
    "bit flipped in the manifest": _flipped(MANIFEST, lambda content: range(len(content))),
    "sector overwritten": _other_block,
    "bytes appended": _longer,
    "tensor file of another step": _of_another(STATE),
    "manifest of another step": _of_another(MANIFEST),
    "checkpoint of another step": _exchanged,
    "tensor file missing": _missing(STATE),
    "manifest missing": _missing(MANIFEST),
}


class Damage(NamedTuple):
    """Outcome of damaging one or two checkpoints in a copy of a run's checkpoints."""

    kind: str
    found: bool
    """Whether messages name exactly the damaged checkpoints, and the newest intact one was loaded to the bit."""


def damages(folder: Path, scratch: Path, times: int, seed: int) -> Iterator[Damage]:
    """Damage copies of the three checkpoints of `folder` at random places, one kind after the other, and load the newest."""
    rng = random.Random(seed)
    names = sorted((path.name for path in folder.iterdir()), reverse=True)
    states = states_of(folder)
    for index in range(times):
        kind, copy, bad = list(DAMAGES)[index % len(DAMAGES)], scratch / str(index), rng.choice((1, 1, 2))
        shutil.copytree(folder, copy, copy_function=os.link)
        for name in names[:bad]:
            DAMAGES[kind](copy, name, names[-1], rng)
        said: list[str] = []
        loaded = checkpoint.load_newest(copy, said.append)
        expected = [f"{copy / name}: checkpoint is damaged" for name in names[:bad]]
        named = len(said) == bad and all(line.startswith(start) for line, start in zip(said, expected, strict=True))
        yield Damage(kind, named and states_equal(loaded, states[names[bad]]))
        shutil.rmtree(copy)


class NotPermittedError(Exception):
    """Mounting a disk is not permitted on this machine; the text names what was refused."""


class Disk(NamedTuple):
    """A small disk, visible only to programs that are started with `inside` in front; a waiting process keeps the mount."""

    inside: list[str]
    path: Path
    """Path of the disk for programs inside."""
    seen: Path
    """Path of the disk for all other programs."""

    def make_read_only(self) -> None:
        """Make the disk read-only."""
        subprocess.run([*self.inside, "mount", "-o", "remount,ro", str(self.path)], check=True)


@contextmanager
def disk(path: Path, size: str) -> Iterator[Disk]:
    """Mount a disk at a new folder. size: as mount takes it, such as "3m". Raises NotPermittedError where the machine refuses."""
    path.mkdir()
    words = f"mount -t tmpfs -o size={size} none '{path}' && cat"
    pipe = subprocess.PIPE
    try:
        holder = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", words],
            stdin=pipe, stdout=pipe, stderr=pipe, text=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise NotPermittedError("a disk needs the program unshare (package util-linux)") from error
    with suppress(BrokenPipeError):
        holder.stdin.write("the disk is there once this comes back\n")
        holder.stdin.flush()
    try:
        if not holder.stdout.readline():
            raise NotPermittedError(f"a disk needs a mount: {holder.stderr.read().strip()}")
        inside = ["nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials", f"--wd={ROOT}"]
        yield Disk(inside, path, Path(f"/proc/{holder.pid}/root{path}"))
    finally:
        with suppress(BrokenPipeError):
            holder.stdin.close()
        holder.wait()


def fill(path: Path) -> None:
    """Write a file until nothing more fits on its disk."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 1024)
