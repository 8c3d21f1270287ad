"""One rank of a run with a fault: `torchrun ... -m tests.helpers.faulty_rank FAULT JSON WORDS...`.

FAULT is a function of this module, JSON its arguments, WORDS what `bigcircuit prune` takes. `stops` is a series of runs.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bigcircuit import prune
from bigcircuit.cli import answer, run_prune
from bigcircuit.distributed import watchdog
from bigcircuit.distributed.ranks import joined_ranks
from bigcircuit.forward import kept_logits
from bigcircuit.io.files import tensor_sha256
from bigcircuit.train import step as train_step
from bigcircuit.train.state import TrainState
from tests.helpers import bad_disks, interrupted_runs

RANK = int(os.environ.get("RANK", "0"))


def around_update(before: Callable[[TrainState], None], after: Callable[[TrainState], None] = lambda _: None) -> None:
    """Call functions with the training state before and after every update of the run."""

    def update(state: TrainState, *arguments: Any) -> Any:
        before(state)
        logged = train_step.update(state, *arguments)
        after(state)
        return logged

    prune.update = update


def sleep(rank: int, step: int, timeout: float) -> None:
    """Hang one rank before the update that follows `step`. timeout: seconds, in place of the 15 s of watchdog.py."""
    watchdog.TIMEOUT = timeout
    around_update(lambda state: time.sleep(1e6) if (RANK, state.step) == (rank, step) else None)


def slow(seconds: float, timeout: float) -> None:
    """Make every update take longer. timeout: seconds, in place of the 15 s of watchdog.py."""
    watchdog.TIMEOUT = timeout
    around_update(lambda _: time.sleep(seconds))


def broken(ranks: list[int], step: int, timeout: float) -> None:
    """Raise an error that is no mistake of the user on some ranks. timeout: seconds, in place of the 15 s of watchdog.py."""
    watchdog.TIMEOUT = timeout

    def before(state: TrainState) -> None:
        if RANK in ranks and state.step == step:
            raise RuntimeError("the library is broken\nin a second line")

    around_update(before)


def not_a_number(rank: int, step: int, folder: str) -> Callable[[], None]:
    """Make the loss of one rank NaN in the update after `step`; every rank writes its last step and hashes of its gates."""
    plain, poisoned, states = train_step.comparison_of, [], []

    def comparison_of(frozen: Any, batch: Any, found: Any, reference: Any) -> Any:
        return plain(frozen, batch, found * float("nan") if poisoned and rank == RANK else found, reference)

    def before(state: TrainState) -> None:
        states[:] = [state]
        if state.step == step:
            poisoned.append(step)

    train_step.comparison_of = comparison_of
    around_update(before)

    def report() -> None:
        (member,) = states[0].population.members
        gates = {name: tensor_sha256(values) for name, values in member.log_alpha.items()}
        Path(folder, f"rank-{RANK}.json").write_text(json.dumps({"step": states[0].step, "gates": gates}))

    return report


def memory(steps: list[int], folder: str) -> None:
    """Write this rank's resident set, MiB, after each of these steps."""
    seen: dict[int, float] = {}

    def after(state: TrainState) -> None:
        if state.step in steps:
            seen[state.step] = psutil.Process().memory_info().rss / 2**20
            Path(folder, f"rank-{RANK}.json").write_text(json.dumps(seen))

    around_update(lambda _: None, after)


def full_disk(step: int, folder: str) -> None:
    """Fill the disk of `folder` after `step` updates."""
    around_update(lambda state: bad_disks.fill(Path(folder, "filler")) if (RANK, state.step) == (0, step) else None)


def full_disk_at(write: int, folder: str) -> Callable[[], None] | None:
    """Fill the disk of `folder` when its files are opened for writing for the `write`-th time. 0: write how often that happens."""
    seen = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not str(arguments[0]).startswith(folder) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        seen[0] += 1
        if seen[0] == write:
            bad_disks.fill(Path(folder, "filler"))

    sys.addaudithook(hook)
    return None if write else lambda: Path(folder, "writes").write_text(str(seen[0]))


def stops(folder: str, steps: list[int], mixed: bool) -> None:
    """Stop and resume at every one of `steps` on all ranks, with reference logits from the disk; rank 0 writes stops.json."""
    kept_logits.SECONDS_WORTH_A_FILE = 0.0
    target = Path(folder)
    with joined_ranks() as ranks:
        seen = {"stops": interrupted_runs.stop_and_resume(ranks, target, steps)}
        if mixed:
            seen["mixed"] = interrupted_runs.change_ranks(ranks, target)
    if RANK == 0:
        (target / "stops.json").write_text(json.dumps(seen))


def main() -> None:
    """Install the fault, run, write what the fault reports."""
    name, arguments, *words = sys.argv[1:]
    report = globals()[name](**json.loads(arguments))
    if name == "stops":
        return
    code = answer(run_prune, words)
    if report is not None:
        report()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
