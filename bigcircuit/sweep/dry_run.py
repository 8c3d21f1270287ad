"""`sweep --dry-run`: print the trials, the slots, and the estimated time and memory, without running the sweep.

Time is measured: one model worker starts where the sweep would start it and makes a few updates with all slots taken.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from bigcircuit.config.load import override
from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.results.trial_record import TrialRecord, read_trial_records
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.runtime.progress import ProgressDisplay, duration
from bigcircuit.sweep.cluster import WorkerResources, cluster, worker_resources
from bigcircuit.sweep.config import Sweep
from bigcircuit.sweep.console import print_trials
from bigcircuit.sweep.messages import Assignment
from bigcircuit.sweep.resume import replaces_other_sweep
from bigcircuit.sweep.search import planned_settings
from bigcircuit.sweep.time_estimate import TimeEstimate
from bigcircuit.sweep.worker_group import WorkerGroup, WorkerLost

_GIB = 2**30
_MEASURED = {"train.steps": 8, "train.validate_every": 4, "train.save_every": 8}
_MAX_ROWS = 60


def dry_run(sweep: Sweep, address: str | None, console: PlainConsole) -> None:
    """Print trials, slots, memory and time of a sweep; address: see execute_sweep. Raises UserError where the sweep cannot run."""
    folder, settings = Path(sweep.config.output), sweep.settings
    records = expected_records(folder, sweep)
    configs = configs_left(records, sweep)
    if settings.search != "optuna":
        print_trials(console, records, _MAX_ROWS)
    else:
        console.print("the trials are drawn as the sweep goes on, from what those before have found; a first one:")
        print_trials(console, records[:1])
    if not configs:
        raise UserError(f"{folder}: no trial is left to run")
    with cluster(address, sweep):
        resources = worker_resources(settings, len(records), address is not None, sweep.config.model.device)
        filled = min(settings.slots, len(configs))
        slots = resources.workers * settings.slots
        console.print(
            f"{len(records)} trials ({settings.search}, scheduler {settings.scheduler}) in {slots} slots: "
            f"{resources.workers} worker(s) with {settings.slots} slots, each of {settings.ranks} rank(s) with "
            f"{resources.cpus} CPU(s) and {resources.gpus:g} GPU(s)"
        )
        progress = ProgressDisplay(True, console=console)
        with progress.phase("counting memory"):
            size = memory_per_rank(configs, filled, settings.ranks)
        console.print(
            f"memory: about {size / _GIB:.2f} GiB a rank, {size * settings.ranks * resources.workers / _GIB:.2f} GiB in all"
        )
        with progress.phase("starting a model worker and timing updates"):
            estimate = asyncio.run(measure_time(sweep, configs[:filled], resources, console))
    share = configs[:: resources.workers]
    steps = sorted({config.train.steps for config in configs})
    rounds = -(-len(share) // filled)
    bound = "" if settings.scheduler == "none" else " if no trial is stopped early"
    seconds = estimate.worker_seconds(share, filled)
    console.print(
        f"time: about {duration(seconds)}{bound}: {estimate.start:.0f} s to start, then {rounds} round(s) "
        f"of {' to '.join(map(str, steps[:: max(1, len(steps) - 1)]))} updates of {estimate.update:.3g} s, measured with "
        f"{estimate.members} member(s)"
    )


def expected_records(folder: Path, sweep: Sweep) -> list[TrialRecord]:
    """Return records of all trials: those in the folder, and new ones; where trials are not known ahead, random draws instead.

    Raises UserError where the folder holds another sweep or other files.
    """
    settings = sweep.settings
    drawn = planned_settings(settings) or planned_settings(settings.model_copy(update={"search": "random"}))
    records = {number: TrialRecord(number, one, one) for number, one in enumerate(drawn)}
    if not replaces_other_sweep(folder, sweep):
        records |= {record.number: record for record in read_trial_records(folder)}
    return list(records.values())


def configs_left(records: Sequence[TrialRecord], sweep: Sweep) -> list[Config]:
    """Return the configs of the trials that have not ended. Marks a trial whose settings do not fit together as failed."""
    configs = []
    for record in records:
        try:
            configs += [] if record.ended else [sweep.trial_config(record.settings, record.number)]
        except UserError as error:
            record.status, record.error = "failed", str(error)
    return configs


def memory_per_rank(configs: Sequence[Config], members: int, ranks: int) -> int:
    """Estimate the bytes that a rank needs for a population of `members` with the first config that can be resolved.

    Raises UserError where none can be resolved.
    """
    for config in configs[:-1]:
        with suppress(UserError):
            return _memory(config, members, ranks)
    return _memory(configs[-1], members, ranks)


def _memory(config: Config, members: int, ranks: int) -> int:
    from bigcircuit.distributed.ranks import Ranks
    from bigcircuit.memory.estimate import Workload
    from bigcircuit.memory.fit import needs
    from bigcircuit.runtime.host_memory import FreeMemory
    from bigcircuit.train.resolve import resolve

    population = override(config, {"population.seeds": members}, "sweep")
    import_module("bigcircuit.sweep.model_replica")  # what a rank imports counts as memory of its process
    run = resolve(population, Ranks())
    here = "cpu" if config.model.device == "cpu" else "auto"  # the machine that plans need not have the GPUs
    return needs(run, Workload.of(run.data.splits, ranks), FreeMemory.measure(here)).total


async def measure_time(
    sweep: Sweep, configs: Sequence[Config], resources: WorkerResources, console: PlainConsole
) -> TimeEstimate:
    """Start a worker and time a few updates of members with these configs; prints which trials fail and leaves them out.

    Raises UserError where all fail.
    """
    short = [override(config, _MEASURED, f"trial {number}") for number, config in enumerate(configs)]
    assignments = [Assignment(number, config, None) for number, config in enumerate(short)]
    worker, numbers, started = WorkerGroup(sweep.settings.ranks, resources), list(range(len(short))), time.monotonic()

    async def advance(updates: int, new: Sequence[Assignment] = ()) -> float:
        progress = await worker.advance(list(new), [], numbers, updates)
        for number, message in progress.failures.items():
            console.print(f"trial {Path(configs[number].output).name} would fail: {message}")
            numbers.remove(number)
        if not numbers:
            raise UserError("none of these trials can run, see above")
        return progress.seconds

    try:
        await worker.start()
        await advance(1, assignments)
        start = time.monotonic() - started
        update = await advance(2) / 2
        validation = await advance(1) - update
        update = min(update, await advance(3) / 3)
        finish = await advance(1) - update
    except WorkerLost as error:
        raise UserError(f"the model worker was lost ({error}); see memory above") from error
    finally:
        worker.shut_down()
    return TimeEstimate(
        start=start,
        update=update,
        validation=max(validation, 0.0),
        finish=max(finish, 0.0),
        members=len(numbers),
    )
