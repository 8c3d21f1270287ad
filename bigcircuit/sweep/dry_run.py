"""`sweep --dry-run`: the trials, the slots, and how much time and memory they are going to take, without running them.

Time is measured: one model worker starts where the sweep would start it and takes a full set of slots through a few updates.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from bigcircuit.config.load import override
from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.results.trial_record import TrialRecord, read_trial_records
from bigcircuit.sweep.cluster import Room, cluster, room_for
from bigcircuit.sweep.config import Sweep
from bigcircuit.sweep.console import print_trials
from bigcircuit.sweep.messages import Entry
from bigcircuit.sweep.resume import replaces_other_sweep
from bigcircuit.sweep.search import planned
from bigcircuit.sweep.time_estimate import TimeEstimate
from bigcircuit.sweep.worker_group import WorkerGroup, WorkerLost

GIB = 2**30
_MEASURED = {"train.steps": 8, "train.validate_every": 4, "train.save_every": 8}
_SHOWN = 60


def dry_run(sweep: Sweep, address: str | None, console: Console) -> None:
    """Print what the sweep would do. Raises UserError where it cannot be done."""
    folder, settings = Path(sweep.config.output), sweep.settings
    records = trials_of(folder, sweep)
    configs = left_of(records, sweep)
    if settings.search != "optuna":
        print_trials(console, records, _SHOWN)
    else:
        console.print("the trials are drawn as the sweep goes on, from what those before have found; a first one:")
        print_trials(console, records[:1])
    if not configs:
        raise UserError(f"{folder}: no trial is left to run")
    with cluster(address, sweep):
        room = room_for(settings, len(records), grows=address is not None)
        filled = min(settings.slots, len(configs))
        console.print(
            f"{len(records)} trials ({settings.search}, scheduler {settings.scheduler}) in {room.workers * settings.slots} slots: "
            f"{room.workers} worker(s) with {settings.slots} slots, each of {settings.ranks} rank(s) with {room.cpus} CPU(s) "
            f"and {room.gpus:g} GPU(s)"
        )
        size = memory(configs, filled, settings.ranks)
        console.print(
            f"memory: about {size / GIB:.2f} GiB a rank, {size * settings.ranks * room.workers / GIB:.2f} GiB in all"
        )
        pace = asyncio.run(measure(sweep, configs[:filled], room, console))
    share = configs[:: room.workers]
    steps = sorted({config.train.steps for config in configs})
    rounds = -(-len(share) // filled)
    bound = "" if settings.scheduler == "none" else " if no trial is stopped early"
    console.print(
        f"time: about {duration(pace.sweep(share, filled))}{bound}: {pace.start:.0f} s to start, then {rounds} round(s) "
        f"of {' to '.join(map(str, steps[:: max(1, len(steps) - 1)]))} updates of {pace.update:.3g} s, measured with "
        f"{pace.members} member(s)"
    )


def trials_of(folder: Path, sweep: Sweep) -> list[TrialRecord]:
    """All trials, those of an interrupted sweep as they are; where they are not known ahead, others from the same ranges.

    Raises UserError where the folder holds something else.
    """
    settings = sweep.settings
    drawn = planned(settings) or planned(settings.model_copy(update={"search": "random"}))
    records = {number: TrialRecord(number, one, one) for number, one in enumerate(drawn)}
    if not replaces_other_sweep(folder, sweep):
        records |= {record.number: record for record in read_trial_records(folder)}
    return list(records.values())


def left_of(records: Sequence[TrialRecord], sweep: Sweep) -> list[Config]:
    """The configs of trials that are not over. One whose settings do not fit together has failed."""
    configs = []
    for record in records:
        try:
            configs += [] if record.over else [sweep.trial(record.settings, record.number)]
        except UserError as error:
            record.status, record.error = "failed", str(error)
    return configs


def memory(configs: Sequence[Config], members: int, ranks: int) -> int:
    """Bytes that a rank needs, as `prune` estimates it for a population with the first of these settings that work.

    Raises UserError where none do.
    """
    for config in configs[:-1]:
        with suppress(UserError):
            return _memory(config, members, ranks)
    return _memory(configs[-1], members, ranks)


def _memory(config: Config, members: int, ranks: int) -> int:
    from bigcircuit.distributed.ranks import Ranks
    from bigcircuit.memory.estimate import Workload
    from bigcircuit.memory.fit import needs
    from bigcircuit.model.zero3 import read_deepspeed
    from bigcircuit.runtime.host_memory import Memory
    from bigcircuit.train.setup import resolve

    population = override(config, {"population.seeds": members}, "sweep")
    data = resolve(population, Ranks()).data
    parts = needs(population, read_deepspeed(config.deepspeed), Workload.of(data.splits, ranks), Memory.here())
    return sum(parts.values())


async def measure(sweep: Sweep, configs: Sequence[Config], room: Room, console: Console) -> TimeEstimate:
    """Start a worker and let members with these configs make a few updates; those that fail are named and left out.

    Raises UserError where all do.
    """
    short = [override(config, _MEASURED, f"trial {number}") for number, config in enumerate(configs)]
    entries = [Entry(number, config, None) for number, config in enumerate(short)]
    worker, numbers, started = WorkerGroup(sweep.settings.ranks, room), list(range(len(short))), time.monotonic()

    async def advance(updates: int, entering: Sequence[Entry] = ()) -> float:
        progress = await worker.advance(list(entering), [], numbers, updates)
        for number, message in progress.failed.items():
            console.print(f"trial {Path(configs[number].output).name} would fail: {message}", markup=False)
            numbers.remove(number)
        if not numbers:
            raise UserError("none of these trials can run, see above")
        return progress.seconds

    try:
        await worker.start()
        await advance(1, entries)
        start = time.monotonic() - started
        update = await advance(2) / 2
        validated = await advance(1) - update
        update = min(update, await advance(3) / 3)
        ended = await advance(1) - update
    except WorkerLost as error:
        raise UserError(f"the model worker was lost ({error}); see memory above") from error
    finally:
        worker.release()
    return TimeEstimate(start, update, max(validated, 0.0), max(ended, 0.0), len(numbers))


def duration(seconds: float) -> str:
    """In words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
