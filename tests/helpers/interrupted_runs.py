"""Short real runs on the embedded model that are stopped, killed or disturbed, and comparisons with runs that are not.

The tests make each fault a few times, benchmarks/reliability.py often enough for a figure.
"""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NamedTuple

import psutil
import torch

from bigcircuit import prune
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import Stopped
from bigcircuit.io import checkpoint
from bigcircuit.io.run_dir import RunDir
from bigcircuit.model.load import EMBEDDED
from bigcircuit.train import step as train_step
from tests.helpers.launch import ON_CPU, ROOT, launcher_command, option_words
from tests.helpers.pair_files import write_pairs
from tests.helpers.patience import Patience, wait_for_end
from tests.helpers.short_runs import QUICK

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
    """Result of a finished run."""

    circuit: str
    """sha256 of the circuit file, or of the files of all members."""
    metrics: str
    """Content of metrics.jsonl."""
    state: checkpoint.SavedState
    """The last checkpoint."""

    @classmethod
    def of(cls, folder: Path) -> "Result":
        """Read a finished run."""
        run = RunDir(folder)
        assert run.finished, f"{folder} has not finished"
        state = checkpoint.load_newest(run.checkpoints, unexpected)
        assert state is not None
        return cls(circuit_sha256(folder), run.metrics.read_text(), state)

    def difference(self, other: "Result") -> float:
        """Return the largest difference of two numbers of the last checkpoints: gates, moments, best gates, duals."""
        mine, theirs = (_numbers(result.state) for result in (self, other))
        return float((mine - theirs).abs().max())

    def equals(self, other: "Result") -> bool:
        """Compare circuit, metrics and every number of the last checkpoint, to the bit."""
        return (self.circuit, self.metrics, self.difference(other)) == (other.circuit, other.metrics, 0)


def _numbers(state: checkpoint.SavedState) -> torch.Tensor:
    duals = [value for member in state.data["members"] for value in [*member["duals"].values(), *member["best"]]]
    parts = [state.tensors[name].double().flatten() for name in sorted(state.tensors)]
    return torch.cat([*parts, torch.tensor(duals, dtype=torch.float64)])


def unexpected(message: str) -> None:
    raise AssertionError(message)


def circuit_sha256(folder: Path) -> str:
    """Hash the circuit files of a run."""
    files = [*folder.glob("circuit.safetensors"), *sorted(folder.glob("circuits/*.safetensors"))]
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def states_of(folder: Path) -> dict[str, checkpoint.SavedState]:
    """Load every checkpoint of a folder of checkpoints, by name."""
    states = {}
    for path in sorted(folder.iterdir()):
        with TemporaryDirectory() as alone:
            (Path(alone) / path.name).symlink_to(path.resolve())
            states[path.name] = checkpoint.load_newest(Path(alone), unexpected)
    return states


def states_equal(one: checkpoint.SavedState | None, other: checkpoint.SavedState | None) -> bool:
    """Compare every tensor and every number of two checkpoints, to the bit. The runs may have other settings."""
    if one is None or other is None:
        return one is other
    return (
        one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(values, other.tensors[name]) for name, values in one.tensors.items())
        and (one.data, {**one.base, "settings": ""}) == (other.data, {**other.base, "settings": ""})
    )


def run_or_resume(output: Path, ranks: Ranks, **overrides: Any) -> Path:
    """Start or resume the short run in this folder; overrides: dotted keys with `__` for the dot."""
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    prune.prune(load(None, {**SETTINGS, "output": str(output), **values}), ranks)
    ranks.barrier()  # before another rank looks into the folder
    return output


@contextmanager
def stopping_at(step: int, ranks: Ranks) -> Iterator[None]:
    """Request a stop on the last rank after `step` updates of a run inside."""

    def update(state: Any, *arguments: Any) -> Any:
        logged = train_step.update(state, *arguments)
        if state.step == step and ranks.rank == ranks.size - 1:
            ranks.stop.number = signal.SIGTERM
        return logged

    plain, prune.update = prune.update, update
    try:
        yield
    finally:
        prune.update, ranks.stop.number = plain, 0


def stop(output: Path, ranks: Ranks, step: int, **overrides: Any) -> None:
    """Run until a requested stop after `step` updates."""
    with stopping_at(step, ranks):
        try:
            run_or_resume(output, ranks, **overrides)
        except Stopped:
            ranks.barrier()
            return
    raise AssertionError(f"{output} did not stop at step {step}")


class StoppedRun(NamedTuple):
    """A run on files of its own, stopped after two of four updates."""

    folder: Path
    """Holds model/, pairs.jsonl and run/."""
    overrides: dict[str, Any]
    """Overrides with which `run_or_resume` resumes it."""


def stopped_run_on_own_files(folder: Path) -> StoppedRun:
    """Copy the embedded model to the folder, write pairs beside it, run on both, and stop."""
    shutil.copytree(EMBEDDED, folder / "model")
    rows = [
        {"clean": f"So {a} likes a {b}", "corrupted": f"So {c} likes a {b}", "answers": " she", "wrong_answers": " he"}
        for a, c in (("Mary", "John"), ("Anna", "James"), ("Emma", "Tom"))
        for b in ("book", "cake", "ball")
    ]
    overrides = {
        "model__path": str(folder / "model"), "task__name": "pairs",
        "task__path": write_pairs(folder / "pairs.jsonl", rows), "train__steps": 4,
        "gates__parametrisation": "hard_concrete",
    }  # fmt: skip
    stop(folder / "run", Ranks(), 2, **overrides)
    return StoppedRun(folder, overrides)


class Stop(NamedTuple):
    """Comparison of a run that was stopped and resumed with one that was not."""

    step: int
    difference: float
    same_circuit: bool
    same_metrics: bool


def stop_and_resume(ranks: Ranks, folder: Path, steps: Sequence[int], **overrides: Any) -> list[Stop]:
    """Stop and resume one run at each of these steps, and compare each with a run that was not stopped."""
    whole = Result.of(run_or_resume(folder / "whole", ranks, **overrides))
    seen = []
    for step in steps:
        cut = folder / f"cut-{step}"
        stop(cut, ranks, step, **overrides)
        found = Result.of(run_or_resume(cut, ranks, **overrides))
        seen.append(Stop(step, whole.difference(found), whole.circuit == found.circuit, whole.metrics == found.metrics))
    return seen


def change_ranks(ranks: Ranks, folder: Path, **overrides: Any) -> Stop:
    """Compare a run of 30 steps on all ranks with one that has all ranks for steps 1 to 10 and 21 to 30 and one rank between."""
    whole, mixed = Result.of(run_or_resume(folder / "whole", ranks, **overrides)), folder / "mixed"
    stop(mixed, ranks, 10, **overrides)
    if ranks.is_first:
        stop(mixed, Ranks(), 20, **overrides)
    ranks.barrier()
    found = Result.of(run_or_resume(mixed, ranks, **overrides))
    return Stop(10, whole.difference(found), whole.circuit == found.circuit, whole.metrics == found.metrics)


class Ending(NamedTuple):
    """End of a job."""

    code: int
    seconds: float
    """Seconds since the last signal that was sent, or since the start."""
    text: str
    """Output of all ranks and the launcher."""

    @property
    def lines(self) -> list[str]:
        """Lines of the output that bigcircuit itself wrote to explain the end."""
        return [line[line.index("bigcircuit: ") :] for line in self.text.splitlines() if "bigcircuit: " in line]


class Job:
    """A run on two ranks under a launcher, or with the launcher "none" in one process; a context manager that kills all of it.

    fault: name and arguments of a function of tests/helpers/faulty_rank.py. inside: words of a command that runs another command,
    as on a disk of its own. log: file of the output, by default beside the folder of the run.
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
        words = option_words({**values, "output": str(output)})
        program = (
            ["-m", "tests.helpers.faulty_rank", fault[0], json.dumps(fault[1])] if fault else ["launchers/prune.py"]
        )
        command = [*inside, *launcher_command(launcher), *program, *words]
        self.output, self._log = output, log or output.with_name(f"{output.name}.log")
        with self._log.open("w") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=ON_CPU, stdout=file, stderr=file, text=True, start_new_session=True
            )
        self._since = time.monotonic()
        self._patience = Patience(self._process.pid)
        self._known: dict[int, psutil.Process] = {}

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = [*self._known.values()]
        with suppress(psutil.NoSuchProcess):
            left += self.all()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def rank(self, number: int) -> psutil.Process:
        """Return the process of a rank; waits until the launcher has started it."""
        while number not in self._known:
            self.look()
            for process in self.all()[1:]:
                with suppress(psutil.Error, KeyError):
                    self._known.setdefault(int(process.environ()["RANK"]), process)
        return self._known[number]

    def step(self) -> int:
        """Return the last step in metrics.jsonl; 0 without one."""
        with suppress(OSError, ValueError, IndexError):
            return json.loads((self.output / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return 0

    def wait_for(self, step: int) -> None:
        """Wait until the run has made `step` updates."""
        self.rank(0), self.rank(1)
        while self.step() < step:
            self.look()

    def look(self) -> None:
        """Sleep for a moment. Fails if the job has ended or hangs."""
        if self._process.poll() is not None:
            raise AssertionError(f"ended with {self._process.returncode} too early:\n{self._log.read_text()}")
        if self._patience.hangs():
            raise AssertionError(f"nothing happens:\n{self._log.read_text()}")
        time.sleep(0.002)

    def all(self) -> list[psutil.Process]:
        """Return the processes of the launcher and of all that it has started."""
        launcher = psutil.Process(self._process.pid)
        return [launcher, *launcher.children(recursive=True)]

    def signal(self, number: int, *processes: psutil.Process, again: bool = False) -> None:
        """Send a signal to processes of this job. again: whether the seconds count from an earlier signal."""
        if not again:
            self._since = time.monotonic()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def end(self) -> Ending:
        """Wait for the end of the launcher and of the ranks."""
        wait_for_end(self._process, self._log.read_text)
        psutil.wait_procs(self._known.values(), timeout=60)
        return Ending(self._process.returncode, time.monotonic() - self._since, self._log.read_text())

    def interruption(self) -> "Interruption":
        """Wait for the end of a disturbed run."""
        ending = self.end()
        state = checkpoint.load_newest(RunDir(self.output).checkpoints, unexpected)
        return Interruption(self.step(), ending, "\n".join(ending.lines), state.data["step"] if state else 0)


def finish(output: Path, **options: Any) -> Result:
    """Run the same command again to its end."""
    with Job(output, **options) as job:
        ending = job.end()
    assert (output / "summary.json").exists(), ending.text
    return Result.of(output)


class Interruption(NamedTuple):
    """State of a disturbed run after its end."""

    step: int
    """Number of updates made."""
    ending: Ending
    text: str
    """Lines of the output that bigcircuit itself wrote to explain the end."""
    saved: int
    """Step of the newest checkpoint."""


def lose(
    output: Path, rank: int, step: int, number: int = signal.SIGKILL, pause: float = 0.0, **options: Any
) -> Interruption:
    """Send a signal to one rank after a step and wait for the end of the job.

    pause: seconds after the step, so that the signal comes at any place of an update.
    """
    with Job(output, **options) as job:
        job.wait_for(step)
        time.sleep(pause)
        job.signal(number, job.rank(rank))
        return job.interruption()


def terminate(output: Path, step: int, everybody: bool = False, times: int = 1, **options: Any) -> Interruption:
    """Send SIGTERM to the launcher after a step, or to all processes of the job as batch systems do, once or several times."""
    with Job(output, **options) as job:
        job.wait_for(step)
        for again in range(times):
            time.sleep(0.05 * again)
            job.signal(signal.SIGTERM, *(job.all() if everybody else job.all()[:1]), again=again > 0)
        return job.interruption()
