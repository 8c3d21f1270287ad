"""`sweep`: the whole of it, top to bottom."""

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from bigcircuit.config_file import flatten
from bigcircuit.errors import Stopped, UserError
from bigcircuit.run_folder import RunFolder, versions
from bigcircuit.storage import write_json
from bigcircuit.sweep.cluster import cluster, room_for
from bigcircuit.sweep.record import OVER, read_records
from bigcircuit.sweep.search import algorithm, planned, samples, scheduler, space, trial_count
from bigcircuit.sweep.settings import Sweep, known_ahead
from bigcircuit.sweep.show import Live, show_table
from bigcircuit.sweep.slots import Slots
from bigcircuit.sweep.trial import Trial

_TO_END = 60.0
"""Seconds that saving all trials may take at the end."""


def run(asked: Sweep, address: str | None, console: Console) -> None:
    """Run a sweep, or what is left of it, write its folder and show how it ended.

    address: of a Ray cluster; without one, Ray is started on this machine and ended with the sweep. Raises UserError, and
    Stopped after a signal, with all trials saved.
    """
    folder = Path(asked.config.output)
    check_same(folder, asked)
    with RunFolder(folder).locked():
        write_json(folder / "sweep.json", described(asked))
        if left(asked, folder):
            with cluster(address, asked), stopped_by_signals():
                search(asked, folder, Live(console))
        else:
            finish(folder)
    show_table(console, read_records(folder))
    console.print(f"see {folder / 'report.html'}", markup=False)


def left(asked: Sweep, folder: Path) -> int:
    """How many trials are not over."""
    over = sum(record.status in OVER for record in read_records(folder))
    return trial_count(asked.settings) - over


def finish(folder: Path) -> None:
    """Write what is made of the trials so far."""
    from bigcircuit.sweep.outcome import write_outcome  # loads torch

    write_outcome(folder)


def search(asked: Sweep, folder: Path, live: Live) -> None:
    """Let Tune run the trials that are left. Raises UserError where nothing can run, Stopped after a signal."""
    settings = asked.settings
    before = [record.settings for record in read_records(folder)]
    total = trial_count(settings)
    room = room_for(settings, total)
    # Where nobody stops a trial nobody waits for one: a single actor tells Tune what was found, trial by trial.
    at_once = 1 if known_ahead(settings) else min(total, room.workers * settings.slots)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    slots = (
        ray.remote(Slots)
        .options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
        .remote(asked, room, planned(settings), total, sys.argv)
    )
    serving = slots.serve.remote()
    try:
        with live.watching(slots), tempfile.TemporaryDirectory(prefix="bigcircuit-tune-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(Trial, slots=slots), _beside_the_driver()),
                param_space=space(settings),
                tune_config=tune.TuneConfig(
                    num_samples=samples(settings),
                    search_alg=algorithm(settings, before, at_once),
                    scheduler=scheduler(asked),
                    max_concurrent_trials=at_once if settings.search == "optuna" else None,
                    reuse_actors=True,
                ),
                # What Tune keeps on disk are pickles that nobody reads: a sweep goes on from its own files.
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=scratch,
                    verbose=0,
                    callbacks=[Stops(slots)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            tuner.fit()
        if (fatal := ray.get(slots.status.remote())["fatal"]) is not None:
            ray.get(serving)  # where it was a mistake of this program it is raised
            raise UserError(fatal)
    finally:
        written = False
        with suppress(ray.exceptions.RayError):  # what is gone has been saved at its last checkpoint
            written = ray.get(slots.halt.remote(), timeout=_TO_END)
        ray.kill(slots)
        if not written:
            finish(folder)


class Stops(tune.Callback):
    """Tells the slots which trials are over."""

    def __init__(self, slots: Any) -> None:
        self._slots = slots

    def on_trial_complete(self, **info: Any) -> None:
        """Called when a trial has ended or the scheduler has stopped it."""
        last = info["trial"].last_result or {}
        if "number" in last:
            self._slots.stop.remote(last["number"])


def _beside_the_driver() -> tune.PlacementGroupFactory:
    """Trials do nothing but wait: a sliver of the head node, which the driver is to run on, holds them all."""
    return tune.PlacementGroupFactory([{"node:__internal_head__": 0.0001}])


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and the first Ctrl-C end the sweep so that its trials can be saved. Raises Stopped."""
    asked: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        asked.append(number)
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemError as error:  # what Ray's own code makes of an exception in a signal handler
        if asked:
            raise Stopped(asked[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def described(asked: Sweep) -> dict[str, Any]:
    """The content of sweep.json."""
    return {
        "config": asked.config.model_dump(mode="json"),
        "sweep": asked.settings.model_dump(mode="json"),
        "command": list(sys.argv),
        "versions": versions() | {"ray": ray.__version__},
    }


_HOW = ("workers", "ranks", "cpus", "gpus", "slots")
"""Settings of a sweep that do not change what it finds."""


def check_same(folder: Path, asked: Sweep) -> None:
    """Raises UserError where the folder holds another sweep, or something else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "sweep.json").exists():
        raise UserError(f"output {folder}: the folder holds other files and no sweep; name another folder")
    if not (folder / "sweep.json").exists():
        return
    before = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(described(asked)))
    for part, leave in (("config", ("deepspeed", "output")), ("sweep", _HOW)):
        old, new = dict(flatten(before[part])), dict(flatten(now[part]))
        for key in sorted(old.keys() | new.keys()):
            if key not in leave and old.get(key) != new.get(key):
                name = f"sweep.{key}" if part == "sweep" else key
                raise UserError(
                    f"{folder}: holds a sweep with {name} {old.get(key)!r}, not {new.get(key)!r}; name another output"
                )
