"""`sweep`: the whole of it, top to bottom."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from bigcircuit.config.schema import Config
from bigcircuit.distributed.signals import StopRequest
from bigcircuit.errors import ReportedError, Stopped, UserError
from bigcircuit.io.files import remove, removed_after, temporary_beside, write_json
from bigcircuit.io.run_dir import RunDir
from bigcircuit.results.sweep import is_sweep
from bigcircuit.results.trial_record import read_trial_records
from bigcircuit.sweep.cluster import cluster, room_for
from bigcircuit.sweep.config import Sweep, is_known_ahead, shares_data
from bigcircuit.sweep.console import LiveTable, print_trials
from bigcircuit.sweep.resume import has_begun, replaces_other_sweep, sweep_json, trials_left
from bigcircuit.sweep.scheduler_actor import SchedulerActor
from bigcircuit.sweep.search import algorithm, planned, samples, scheduler, space, trial_count
from bigcircuit.sweep.trainable import TuneTrial

_HEAD = "node:__internal_head__"
"""What only the head node has, for Ray."""
_TO_END = 60.0
"""Seconds that saving all trials may take at the end."""


def run_sweep(asked: Sweep, address: str | None, console: Console) -> None:
    """Run a sweep, or what is left of it, write its folder and show how it ended.

    address: of a Ray cluster; without one, Ray is started on this machine and ended with the sweep. Raises UserError, also
    where all trials have failed, and Stopped after a signal, with all trials saved.
    """
    folder = Path(asked.config.output)
    another = replaces_other_sweep(folder, asked)
    if is_sweep(folder) and not another and not trials_left(folder, asked) and (folder / "report.html").exists():
        return show(folder, console, f"{folder} holds a finished sweep with these settings; nothing to do")
    if address is None and not has_begun(folder) and shares_data(asked.settings):
        check(asked.config)
    with RunDir(folder).locked():
        if another:
            remove(folder / "trials")
        if trials_left(folder, asked):
            request = StopRequest()
            with cluster(address, asked), request.heeded():
                search(asked, folder, LiveTable(console), request, grows=address is not None)
        else:
            finish(folder)
    return show(folder, console, f"see {folder / 'report.html'}")


def show(folder: Path, console: Console, last: str) -> None:
    """Print what has become of the trials. Raises UserError where all have failed."""
    records = read_trial_records(folder)
    print_trials(console, records)
    console.print(last, markup=False)
    if all(record.status == "failed" for record in records):
        raise UserError(f"{folder}: all {len(records)} trials have failed, see above; mend the config and start again")


def check(config: Config) -> None:
    """Raises UserError for what can be known to go wrong on this machine before Ray is started and a file written."""
    from bigcircuit.train.setup import resolve_data  # loads torch

    resolve_data(config)


def finish(folder: Path) -> None:
    """Write what is made of the trials so far."""
    from bigcircuit.report.sweep_outputs import write_sweep_outputs  # loads torch

    write_sweep_outputs(folder)


def search(asked: Sweep, folder: Path, live: LiveTable, request: StopRequest, grows: bool) -> None:
    """Let Tune run the trials that are left, until a signal asks to stop; grows: see room_for.

    Raises UserError where nothing can run, OutOfMemory, Stopped after a signal.
    """
    settings = asked.settings
    before = {record.number: record.settings for record in read_trial_records(folder)}
    total = trial_count(settings)
    room = room_for(settings, total, grows)
    if settings.scheduler == "pbt":
        refuse_away_from_head()
    write_json(folder / "sweep.json", sweep_json(asked))
    # Where nobody stops a trial nobody waits for one: a single actor tells Tune what was found, trial by trial.
    at_once = 1 if is_known_ahead(settings) else min(total, room.workers * settings.slots)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    slots = (
        ray.remote(SchedulerActor)
        .options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
        .remote(asked, room, planned(settings), total, sys.argv)
    )
    serving, scratch = slots.serve.remote(), temporary_beside(folder / "tune")
    try:
        with live.watching(slots), removed_after(scratch):
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(TuneTrial, slots=slots), _beside_the_driver()),
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
