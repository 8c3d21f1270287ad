"""`sweep`: the whole of it, top to bottom."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from bigcircuit.config import Config
from bigcircuit.errors import ReportedError, Stopped, UserError
from bigcircuit.run_folder import RunFolder
from bigcircuit.stopping import StopRequest
from bigcircuit.storage import cleared, remove, temporary_beside, write_json
from bigcircuit.sweep.cluster import cluster, room_for
from bigcircuit.sweep.folder import is_sweep
from bigcircuit.sweep.record import read_records
from bigcircuit.sweep.search import algorithm, planned, samples, scheduler, space, trial_count
from bigcircuit.sweep.settings import Sweep, known_ahead, one_ground
from bigcircuit.sweep.show import Live, show_table
from bigcircuit.sweep.slots import Slots
from bigcircuit.sweep.standing import begun, described, left, replaces
from bigcircuit.sweep.trial import Trial

_HEAD = "node:__internal_head__"
"""What only the head node has, for Ray."""
_TO_END = 60.0
"""Seconds that saving all trials may take at the end."""


def run(asked: Sweep, address: str | None, console: Console) -> None:
    """Run a sweep, or what is left of it, write its folder and show how it ended.

    address: of a Ray cluster; without one, Ray is started on this machine and ended with the sweep. Raises UserError, also
    where all trials have failed, and Stopped after a signal, with all trials saved.
    """
    folder = Path(asked.config.output)
    another = replaces(folder, asked)
    if is_sweep(folder) and not another and not left(folder, asked) and (folder / "report.html").exists():
        return show(folder, console, f"{folder} holds a finished sweep with these settings; nothing to do")
    if address is None and not begun(folder) and one_ground(asked.settings):
        check(asked.config)
    with RunFolder(folder).locked():
        if another:
            remove(folder / "trials")
        if left(folder, asked):
            request = StopRequest()
            with cluster(address, asked), request.heeded():
                search(asked, folder, Live(console), request, grows=address is not None)
        else:
            finish(folder)
    return show(folder, console, f"see {folder / 'report.html'}")


def show(folder: Path, console: Console, last: str) -> None:
    """Print what has become of the trials. Raises UserError where all have failed."""
    records = read_records(folder)
    show_table(console, records)
    console.print(last, markup=False)
    if all(record.status == "failed" for record in records):
        raise UserError(f"{folder}: all {len(records)} trials have failed, see above; mend the config and start again")


def check(config: Config) -> None:
    """Raises UserError for what can be known to go wrong on this machine before Ray is started and a file written."""
    from bigcircuit.ground import read  # loads torch

    read(config)


def finish(folder: Path) -> None:
    """Write what is made of the trials so far."""
    from bigcircuit.sweep.outcome import write_outcome  # loads torch

    write_outcome(folder)


def search(asked: Sweep, folder: Path, live: Live, request: StopRequest, grows: bool) -> None:
    """Let Tune run the trials that are left, until a signal asks to stop; grows: see room_for.

    Raises UserError where nothing can run, OutOfMemory, Stopped after a signal.
    """
    settings = asked.settings
    before = {record.number: record.settings for record in read_records(folder)}
    total = trial_count(settings)
    room = room_for(settings, total, grows)
    if settings.scheduler == "pbt":
        refuse_away_from_head()
    write_json(folder / "sweep.json", described(asked))
    # Where nobody stops a trial nobody waits for one: a single actor tells Tune what was found, trial by trial.
    at_once = 1 if known_ahead(settings) else min(total, room.workers * settings.slots)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    slots = (
        ray.remote(Slots)
        .options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
        .remote(asked, room, planned(settings), total, sys.argv)
    )
    serving, scratch = slots.serve.remote(), temporary_beside(folder / "tune")
    try:
        with live.watching(slots), cleared(scratch):
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
                    storage_path=str(scratch.resolve()),
                    verbose=0,
                    callbacks=[Messages(slots, request)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            tuner.fit()
        if isinstance(fatal := ray.get(slots.fatal.remote()), ReportedError):
            raise fatal
        if fatal is not None:
            ray.get(serving)  # raises it: a mistake of this program
    finally:
        written = False
        with suppress(ray.exceptions.RayError):  # what is gone has been saved at its last checkpoint
            written = ray.get(slots.halt.remote(), timeout=_TO_END)
        ray.kill(slots)
        if not written:
            finish(folder)


class Messages(tune.Callback):
    """What the slots have to know of Tune and of the person at the terminal."""

    def __init__(self, slots: Any, request: StopRequest) -> None:
        self._slots, self._request = slots, request

    def on_trial_complete(self, **info: Any) -> None:
        """Called when a trial has ended or the scheduler has stopped it."""
        last = info["trial"].last_result or {}
        if "number" in last:
            self._slots.stop.remote(last["number"])

    def on_step_begin(self, **_: Any) -> None:
        """Called several times a second. Raises Stopped after a signal.

        A signal handler must not raise it itself: Tune takes what is raised while it reads a result for the failure of that
        trial, and goes on with the others. Before it ends Tune waits for its trials, so they are told first.
        """
        if self._request.number:
            self._slots.end.remote()
            raise Stopped(self._request.number)


def refuse_away_from_head() -> None:
    """Raises UserError where trials, which are on the head node, and this driver do not see the same files."""
    here = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == here and _HEAD in node["Resources"] for node in ray.nodes()):
        raise UserError("sweep.scheduler pbt: trials copy each other's state on the head node; start the sweep there")


def _beside_the_driver() -> tune.PlacementGroupFactory:
    """Trials do nothing but wait: a sliver of the head node, which the driver is to run on, holds them all."""
    return tune.PlacementGroupFactory([{_HEAD: 0.0001}])
