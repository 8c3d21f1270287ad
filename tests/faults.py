"""Faults made on purpose in short real runs on the embedded model, and what came of them.

The tests make each a few times, benchmarks/reliability.py as often as it takes to trust the figure.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import psutil
import torch

from bigcircuit import checkpoint, prune, train
from bigcircuit.config_file import load
from bigcircuit.distributed import Ranks
from bigcircuit.errors import Stopped
from bigcircuit.run_folder import RunFolder
from tests.runs import QUICK

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
SETTINGS: dict[str, Any] = {
    **QUICK,
    "task.size": 40,
    "train.steps": 30,
    "train.micro_batch_size": 4,
    "train.log_every": 1,
    "train.save_every": 4,
    "train.validate_every": 10,
}
"""A run of a few seconds whose result is the same to the bit on one and on two ranks."""


class Result(NamedTuple):
    """What a finished run has found."""

    circuit: str
    """sha256 of the circuit file."""
    metrics: str
    """All of metrics.jsonl."""
    state: checkpoint.State
    """The last checkpoint."""

    @classmethod
    def of(cls, folder: Path) -> "Result":
        """Read a finished run."""
        run = RunFolder(folder)
        assert run.finished, f"{folder} has not finished"
        state = checkpoint.newest(run.checkpoints, _unexpected)
        assert state is not None
        return cls(file_sha256(folder / "circuit.safetensors"), run.metrics.read_text(), state)

    def difference(self, other: "Result") -> float:
        """The largest between any two numbers of the last checkpoints: gates, moments, best gates, duals."""
        mine, theirs = (_numbers(result.state) for result in (self, other))
        return float((mine - theirs).abs().max())


def _numbers(state: checkpoint.State) -> torch.Tensor:
    duals = [value for member in state.data["members"] for value in [*member["duals"].values(), *member["best"]]]
    parts = [state.tensors[name].double().flatten() for name in sorted(state.tensors)]
    return torch.cat([*parts, torch.tensor(duals, dtype=torch.float64)])


def _unexpected(message: str) -> None:
    raise AssertionError(message)


def file_sha256(path: Path) -> str:
    """sha256 of a file."""
    return sha256(path.read_bytes()).hexdigest()


# Stopping and resuming, all within one process or one start of the ranks.


def once(output: Path, ranks: Ranks, **overrides: Any) -> Path:
    """Run, or go on with, the short run in this folder; overrides are dotted keys with `__` for the dot."""
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    prune.prune(load(None, {**SETTINGS, "output": str(output), **values}), ranks)
    ranks.wait()  # before another rank looks into the folder
    return output


@contextmanager
def stopping_at(step: int, ranks: Ranks) -> Iterator[None]:
    """Inside, the last rank is asked to stop once the run has made so many updates."""

    def update(state: Any, *arguments: Any) -> Any:
        logged = train.update(state, *arguments)
        if state.step == step and ranks.rank == ranks.size - 1:
            ranks.stop.number = signal.SIGTERM
        return logged

    plain, prune.update = prune.update, update
    try:
        yield
    finally:
        prune.update, ranks.stop.number = plain, 0


def stop(output: Path, ranks: Ranks, step: int, **overrides: Any) -> None:
    """Run until it stops, as asked, after `step` updates."""
    with stopping_at(step, ranks):
        try:
            once(output, ranks, **overrides)
        except Stopped:
            ranks.wait()
            return
    raise AssertionError(f"{output} did not stop at step {step}")


class Stop(NamedTuple):
    """A run that was stopped and resumed, against the one that was not."""

    step: int
    difference: float
    same_circuit: bool
    same_metrics: bool


def stop_and_resume(ranks: Ranks, folder: Path, steps: Sequence[int], **overrides: Any) -> list[Stop]:
    """Stop and resume a run at each of these steps."""
    whole = Result.of(once(folder / "whole", ranks, **overrides))
    seen = []
    for step in steps:
        cut = folder / f"cut-{step}"
        stop(cut, ranks, step, **overrides)
        found = Result.of(once(cut, ranks, **overrides))
        seen.append(Stop(step, whole.difference(found), whole.circuit == found.circuit, whole.metrics == found.metrics))
    return seen


def change_ranks(ranks: Ranks, folder: Path, **overrides: Any) -> Stop:
    """A run of 30 steps on all ranks, stopped at 10, continued by one until 20, and by all again; against all the time."""
    whole, mixed = Result.of(once(folder / "all", ranks, **overrides)), folder / "mixed"
    stop(mixed, ranks, 10, **overrides)
    if ranks.first:
        stop(mixed, Ranks(), 20, **overrides)
    ranks.wait()
    found = Result.of(once(mixed, ranks, **overrides))
    return Stop(10, whole.difference(found), whole.circuit == found.circuit, whole.metrics == found.metrics)


# Jobs of two processes.


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ending(NamedTuple):
    """How a job ended."""

    code: int
    seconds: float
    """Since the last signal that was sent, or since the start."""
    text: str
    """All it said."""

    @property
    def lines(self) -> list[str]:
        """What bigcircuit itself said to explain it."""
        return [line[line.index("bigcircuit: ") :] for line in self.text.splitlines() if "bigcircuit: " in line]


class Job:
    """Two ranks under a launcher; as a context manager it leaves no process behind.

    fault: a function of tests/faulty.py and its arguments. inside: a command that runs another one somewhere else.
    """

    def __init__(
        self,
        output: Path,
        *,
        launcher: str = "torchrun",
        fault: tuple[str, Mapping[str, Any]] | None = None,
        inside: Sequence[str] = (),
        log: Path | None = None,
        **overrides: Any,
    ) -> None:
        values = {**SETTINGS, **{key.replace("__", "."): value for key, value in overrides.items()}}
        words = [f"--{key}={json.dumps(value)}" for key, value in {**values, "output": str(output)}.items()]
        program = ["-m", "tests.faulty", fault[0], json.dumps(fault[1])] if fault else ["launchers/prune.py"]
        command = [*inside, sys.executable, *_launcher(launcher), *program, *words]
        self.output, self._log = output, log or output.with_name(f"{output.name}.log")
        with self._log.open("w") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True
            )
        self._since = time.monotonic()
        self._known: dict[int, psutil.Process] = {}

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = [*self._known.values()]
        with suppress(psutil.NoSuchProcess):
            left += self._children() + [psutil.Process(self._process.pid)]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank; waits until the launcher has started it."""
        while number not in self._known:
            self._look()
            for process in self._children():
                with suppress(psutil.Error, KeyError):
                    self._known.setdefault(int(process.environ()["RANK"]), process)
        return self._known[number]

    def step(self) -> int:
        """The last step that metrics.jsonl has a line of."""
        with suppress(OSError, ValueError, IndexError):
            return json.loads((self.output / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return 0

    def wait_for(self, step: int) -> None:
        """Hold until the run has made so many updates."""
        self.rank(0), self.rank(1)
        while self.step() < step:
            self._look()

    def _look(self) -> None:
        if self._process.poll() is not None:
            raise AssertionError(f"ended with {self._process.returncode} too early:\n{self._log.read_text()}")
        if time.monotonic() - self._since > 120:
            raise AssertionError(f"nothing happens:\n{self._log.read_text()}")
        time.sleep(0.002)

    def signal(self, number: int, *processes: psutil.Process) -> None:
        """Send a signal to these processes; to the launcher where none is given."""
        self._since = time.monotonic()
        for process in processes or [psutil.Process(self._process.pid)]:
            process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """Send a signal to the launcher, to what it started, and to all ranks, as batch systems do."""
        self.signal(number, psutil.Process(self._process.pid), *self._children())

    def end(self) -> Ending:
        """Wait for the end of the launcher and of the ranks."""
        code = self._process.wait(timeout=180)
        psutil.wait_procs(self._known.values(), timeout=60)
        return Ending(code, time.monotonic() - self._since, self._log.read_text())


def _launcher(name: str) -> list[str]:
    port = str(free_port())
    if name == "deepspeed":
        program = shutil.which("deepspeed", path=str(Path(sys.executable).parent))
        return [str(program), "--num_accelerators", "2", "--master_port", port]
    return ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]


def finish(output: Path, **options: Any) -> Result:
    """Run the same command again until its end."""
    with Job(output, **options) as job:
        ending = job.end()
    assert (output / "summary.json").exists(), ending.text
    return Result.of(output)


class Loss(NamedTuple):
    """A rank that was lost."""

    step: int
    ending: Ending
    line: str
    """What the user reads."""
    resumed: Result


def lose(output: Path, rank: int, step: int, number: int = signal.SIGKILL, pause: float = 0.0, **options: Any) -> Loss:
    """Send a signal to one rank a moment after a step, wait for the job to end, and run the command again.

    pause: seconds after the step, so that any place of an update can be hit.
    """
    with Job(output, **options) as job:
        job.wait_for(step)
        time.sleep(pause)
        job.signal(number, job.rank(rank))
        ending, reached = job.end(), job.step()
    options.pop("fault", None)
    return Loss(reached, ending, "\n".join(ending.lines), finish(output, **options))


# A crash at every operation of a save.


class _Counted:
    """A file whose writes are counted."""

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
    """Ends this process, as a power cut would, at the n-th time that it writes, syncs, renames, makes or removes a file.

    Half of what was written and not synced is then gone. For a forked child: the hooks stay.
    """

    def __init__(self, number: int, report: int) -> None:
        """report: a file descriptor that gets the name of the operation."""
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
    """Crash at the first operation of `action`, at the next, ..., each in a child of its own, until it gets through.

    Gives the name of the operation after each crash. prepare: what to do before each.
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


def states_equal(one: checkpoint.State | None, other: checkpoint.State | None) -> bool:
    """Whether every tensor and every number is the same."""
    if one is None or other is None:
        return one is other
    return (
        one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(values, other.tensors[name]) for name, values in one.tensors.items())
        and (one.data, one.base) == (other.data, other.base)
    )


# Damage.

STATE, MANIFEST = "state.safetensors", "state.json"


def _rewrite(path: Path, content: bytes) -> None:
    """Other content under the same name; the file may be a hard link to one that has to stay."""
    path.unlink()
    path.write_bytes(content)


def _truncated(file: str) -> "Damager":
    def damage(copy: Path, name: str, _: str, rng: random.Random) -> None:
        content = (copy / name / file).read_bytes()
        _rewrite(copy / name / file, content[: rng.randrange(len(content))])

    return damage


def _flipped(file: str, part: Callable[[bytes], range]) -> "Damager":
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
    """A sector holds something else."""
    content = bytearray((copy / name / STATE).read_bytes())
    place = rng.randrange(0, len(content), 512)
    length = len(content[place : place + 512])
    content[place : place + 512] = rng.randbytes(length)
    _rewrite(copy / name / STATE, bytes(content))


def _longer(copy: Path, name: str, _: str, rng: random.Random) -> None:
    file = copy / name / rng.choice((STATE, MANIFEST))
    _rewrite(file, file.read_bytes() + rng.choice((b"\0", b" ", b"\n", rng.randbytes(100))))


def _of_another(file: str) -> "Damager":
    def damage(copy: Path, name: str, other: str, _: random.Random) -> None:
        _rewrite(copy / name / file, (copy / other / file).read_bytes())

    return damage


def _exchanged(copy: Path, name: str, other: str, _: random.Random) -> None:
    """A whole checkpoint lies under the name of another one."""
    shutil.rmtree(copy / name)
    shutil.copytree(copy / other, copy / name)


def _missing(file: str) -> "Damager":
    return lambda copy, name, _, __: (copy / name / file).unlink()


Damager = Callable[[Path, str, str, random.Random], None]
"""What it is given: the folder of the checkpoints, the name of the one to damage, the name of another one, a generator."""
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
    """What came of one checkpoint, or two, made bad in a copy of a run's checkpoints."""

    kind: str
    found: bool
    """Whether each was named in a message, no other was, and the newest whole one was loaded to the bit."""


def damages(folder: Path, scratch: Path, times: int, seed: int) -> Iterator[Damage]:
    """Damage copies of the three checkpoints of `folder` at random places, one kind after the other."""
    rng = random.Random(seed)
    names = sorted((path.name for path in folder.iterdir()), reverse=True)
    states = {name: _alone(folder / name, scratch / "alone") for name in names}
    for index in range(times):
        kind, copy, bad = list(DAMAGES)[index % len(DAMAGES)], scratch / str(index), rng.choice((1, 1, 2))
        shutil.copytree(folder, copy, copy_function=os.link)
        for name in names[:bad]:
            DAMAGES[kind](copy, name, names[-1], rng)
        said: list[str] = []
        loaded = checkpoint.newest(copy, said.append)
        expected = [f"{copy / name}: checkpoint is damaged" for name in names[:bad]]
        named = len(said) == bad and all(line.startswith(start) for line, start in zip(said, expected, strict=True))
        yield Damage(kind, named and states_equal(loaded, states[names[bad]]))
        shutil.rmtree(copy)


def _alone(path: Path, scratch: Path) -> checkpoint.State:
    shutil.copytree(path, scratch / path.name)
    state = checkpoint.newest(scratch, _unexpected)
    assert state is not None
    shutil.rmtree(scratch)
    return state


# A disk of our own.


class NotPermittedError(Exception):
    """This machine does not let us mount a disk; the text says what was refused."""


class Disk(NamedTuple):
    """A small disk, seen only by programs that are started with `inside` in front; kept by a process that waits."""

    inside: list[str]
    path: Path
    """As the programs inside see it."""
    seen: Path
    """As everybody sees it."""

    def make_read_only(self) -> None:
        """From now on nothing can be written."""
        subprocess.run([*self.inside, "mount", "-o", "remount,ro", str(self.path)], check=True)


@contextmanager
def disk(path: Path, size: str) -> Iterator[Disk]:
    """Mount a disk of this size at a new folder. Raises NotPermittedError where the machine refuses."""
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
