"""Verb `sweep`: run or resume a sweep, top to bottom."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bigcircuit.config.schema import Config
from bigcircuit.distributed.signals import StopRequest
from bigcircuit.errors import ReportedError, Stopped, UserError
from bigcircuit.io.files import remove, removing, temporary_path, write_json
from bigcircuit.io.run_dir import RunDir
from bigcircuit.results.sweep import is_sweep, read_sweep
from bigcircuit.results.trial_record import read_trial_records
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.sweep.cluster import cluster, worker_resources
from bigcircuit.sweep.config import Sweep, is_known_ahead, shares_data
from bigcircuit.sweep.console import LiveTable, print_trials
from bigcircuit.sweep.resume import has_begun, replaces_other_sweep, sweep_json, trials_left
from bigcircuit.sweep.scheduler_actor import SchedulerActor
from bigcircuit.sweep.search import (
    num_samples,
    planned_settings,
    search_algorithm,
    search_space,
    trial_count,
    trial_scheduler,
)
from bigcircuit.sweep.trainable import TuneTrial

_HEAD = "node:__internal_head__"
"""Ray resource that only the head node has."""
_SHUT_DOWN_SECONDS = 60.0
"""Timeout for saving all trials and writing the outputs at the end."""


def execute_sweep(sweep: Sweep, address: str | None, console: PlainConsole) -> None:
    """Run or resume a sweep, write its folder and print the outcome.

    address: of a Ray cluster; None: start Ray on this machine for the sweep. Raises UserError, also where all trials have failed,
    and Stopped after a signal, with all trials saved.
    """
    folder = Path(sweep.config.output)
    replaces = replaces_other_sweep(folder, sweep)
    if is_sweep(folder) and not replaces and not trials_left(folder, sweep) and (folder / "report.html").exists():
        return show_outcome(folder, console, f"{folder} holds a finished sweep with these settings; nothing to do")
    if address is None and not has_begun(folder) and shares_data(sweep.settings):
        progress = ProgressDisplay(True, console=console)
        with progress.phase("reading model config and pairs"):
            notes = check(sweep.config)
        for note in notes:
            progress.print_line(f"note: {note}")
    with RunDir(folder).locked():
        # Once more: another process may have used the folder since, while this one read the pairs.
        if replaces_other_sweep(folder, sweep):
            remove(folder / "trials")
        if trials_left(folder, sweep):
            request = StopRequest()
            with request.handling_signals(), cluster(address, sweep):
                run_trials(sweep, folder, LiveTable(console), request, can_grow=address is not None)
        else:
            write_outputs(folder)
    return show_outcome(folder, console, f"see {folder / 'report.html'}")


def show_outcome(folder: Path, console: PlainConsole, last: str) -> None:
    """Print the table of trials, then the line `last`. Raises UserError where all trials have failed."""
    sweep = read_sweep(folder)
    records = [trial.record for trial in sweep.trials]
    print_trials(console, records, points={trial.number: trial.point for trial in sweep.finished})
    console.print(last)
    if all(record.status == "failed" for record in records):
        raise UserError(f"{folder}: all {len(records)} trials have failed, see above; mend the config and start again")


def check(config: Config) -> tuple[str, ...]:
    """Check model and pairs before Ray is started and a file is written. Returns notes on the pairs. Raises UserError."""
    from bigcircuit.distributed.ranks import Ranks  # loads torch
    from bigcircuit.train.resolve import resolve

    return resolve(config, Ranks()).data.notes


def write_outputs(folder: Path) -> None:
    """Write the tables, the Pareto front and the report page of the trials so far. Raises UserError."""
    from bigcircuit.report.sweep_outputs import write_sweep_outputs  # loads torch

    write_sweep_outputs(folder)


def run_trials(sweep: Sweep, folder: Path, live: LiveTable, request: StopRequest, can_grow: bool) -> None:
    """Let Tune run the trials that are left, until all have ended or a signal requests a stop; can_grow: see worker_resources.

    Raises UserError where no worker or trial can run, OutOfMemory, and Stopped after a signal.
    """
    settings = sweep.settings
    before = {record.number: record.settings for record in read_trial_records(folder)}
    total = trial_count(settings)
    resources = worker_resources(settings, total, can_grow, sweep.config.model.device)
    if settings.scheduler == "pbt":
        check_on_head_node()
    write_json(folder / "sweep.json", sweep_json(sweep))
    # Where all trials are known ahead no slot waits for Tune: a single actor is enough to report them to Tune, one by one.
    max_concurrent = 1 if is_known_ahead(settings) else min(total, resources.workers * settings.slots)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(SchedulerActor)
    scheduler = actor.options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here).remote(
        sweep, resources, planned_settings(settings), total, sys.argv
    )
    serving, scratch = scheduler.serve.remote(scheduler), temporary_path(folder / "tune")
    try:
        with live.watching(scheduler), removing(scratch):
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(TuneTrial, scheduler=scheduler), _trial_resources()),
                param_space=search_space(settings),
                tune_config=tune.TuneConfig(
                    num_samples=num_samples(settings),
                    search_alg=search_algorithm(settings, before, max_concurrent),
                    scheduler=trial_scheduler(sweep),
                    max_concurrent_trials=max_concurrent if settings.search == "optuna" else None,
                    reuse_actors=True,
                ),
                # Tune writes pickles that are never read: a sweep resumes from its own files.
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=str(scratch.resolve()),
                    verbose=0,
                    callbacks=[StopCallback(scheduler, request)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            tuner.fit()
        fatal_error: Any = ray.get(scheduler.fatal_error.remote())
        if isinstance(fatal_error, ReportedError):
            raise fatal_error
        if fatal_error is not None:
            ray.get(serving)  # raises it: a mistake of this program
    finally:
        written: Any = False
        with suppress(ray.exceptions.RayError):  # where the actor is lost, its trials keep their last checkpoints
            written = ray.get(scheduler.shut_down.remote(), timeout=_SHUT_DOWN_SECONDS)
        ray.kill(scheduler)
        if not written:
            write_outputs(folder)


class StopCallback(tune.Callback):
    """Passes ends of trials on to the scheduler actor, and a stop request of the user on to Tune."""

    def __init__(self, scheduler: Any, request: StopRequest) -> None:
        self._scheduler, self._request = scheduler, request

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Free the slot of a trial that has ended or that Tune's scheduler has stopped."""
        last = trial.last_result or {}
        if "number" in last:
            self._scheduler.stop_trial.remote(last["number"])

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """End Tune after a signal; called several times a second. Raises Stopped.

        A signal handler must not raise it itself: Tune takes an exception while it reads a result for a failure of that trial, and
        continues with the others. The scheduler is drained first, because Tune waits for its trials before it ends.
        """
        if self._request.number:
            self._scheduler.drain.remote()
            raise Stopped(self._request.number)


def check_on_head_node() -> None:
    """Raises UserError where this driver is not on the head node, whose files the trials read and write."""
    here = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == here and _HEAD in node["Resources"] for node in ray.nodes()):
        raise UserError("sweep.scheduler pbt: trials copy each other's state on the head node; start the sweep there")


def _trial_resources() -> tune.PlacementGroupFactory:
    """Return the resources of a TuneTrial: next to nothing of the head node, which all trials share, since they only wait."""
    return tune.PlacementGroupFactory([{_HEAD: 0.0001}])
