"""`sweep --dry-run`: the trials, the slots, and how much time and memory they are going to take, without running them.

Time is measured: one model worker starts where the sweep would start it and takes a full set of slots through a few updates.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console

from bigcircuit.config import Config
from bigcircuit.config_file import override
from bigcircuit.errors import UserError
from bigcircuit.sweep.cluster import Room, cluster, room_for
from bigcircuit.sweep.messages import Entry
from bigcircuit.sweep.record import Record
from bigcircuit.sweep.search import planned
from bigcircuit.sweep.settings import Sweep
from bigcircuit.sweep.show import show_table
from bigcircuit.sweep.worker import ModelWorker, WorkerLost

GIB = 2**30
_MEASURED = {"train.steps": 8, "train.validate_every": 4, "train.save_every": 8}
_SHOWN = 60


class Pace(NamedTuple):
    """Seconds of one worker with all its slots taken."""

    start: float
    """Until the first update is made: processes, weights, the full model's logits."""
    update: float
    validation: float
    ending: float
    """Validation, final scores and whatever else ends a trial."""

    def sweep(self, config: Config, members: Sequence[int]) -> float:
        """Of a worker that takes so many members at a time, one set after the other.

        With F for a forward pass, an update of p members takes (1 + 2 p) F.
        """
        train = config.train
        full = train.steps * self.update + (train.steps // train.validate_every) * self.validation + self.ending
        return self.start + sum(full * (1 + 2 * p) / (1 + 2 * members[0]) for p in members)


def dry_run(sweep: Sweep, address: str | None, console: Console) -> None:
    """Print what the sweep would do. Raises UserError where it cannot be done."""
    settings, trials = sweep.settings, drawn(sweep)
    configs = [sweep.trial(one, number) for number, one in enumerate(trials)]
    known = settings.search != "optuna"
    first = [Record(number, one, one) for number, one in enumerate(trials)]
    if known:
        show_table(console, first, _SHOWN)
    else:
        console.print("the trials are drawn as the sweep goes on, from what those before have found; a first one:")
        show_table(console, first[:1])
    with cluster(address, sweep):
        room = room_for(settings, len(trials))
        filled = min(settings.slots, len(trials))
        console.print(
            f"{len(trials)} trials ({settings.search}, scheduler {settings.scheduler}) in {room.workers * settings.slots} slots: "
            f"{room.workers} worker(s) with {settings.slots} slots, each of {settings.ranks} rank(s) with {room.cpus} CPU(s) "
            f"and {room.gpus:g} GPU(s)"
        )
        size = memory(configs[0], filled, settings.ranks)
        console.print(
            f"memory: about {size / GIB:.2f} GiB a rank, {size * settings.ranks * room.workers / GIB:.2f} GiB in all"
        )
        pace = asyncio.run(measure(sweep, configs[:filled], room))
    waves = [min(filled, left) for left in range(-(-len(trials) // room.workers), 0, -filled)]
    bound = "" if settings.scheduler == "none" else " if no trial is stopped early"
    console.print(
        f"time: about {duration(pace.sweep(sweep.config, waves))}{bound}: {pace.start:.0f} s to start, then {len(waves)} round(s) "
        f"of {sweep.config.train.steps} updates of {pace.update:.3g} s, measured with {filled} member(s)"
    )


def drawn(sweep: Sweep) -> list[dict[str, Any]]:
    """The settings of all trials; where they are not known ahead, others from the same ranges."""
    settings = sweep.settings
    return planned(settings) or planned(settings.model_copy(update={"search": "random"}))


def memory(config: Config, members: int, ranks: int) -> int:
    """Bytes that a rank needs, as `prune` estimates it for a population. Raises UserError for settings that do not work."""
    from bigcircuit.distributed import Ranks
    from bigcircuit.ground import prepare
    from bigcircuit.memory import Workload
    from bigcircuit.plan import Memory, needs
    from bigcircuit.sharding import read_settings

    population = override(config, {"population.seeds": members}, "sweep")
    data = prepare(population, Ranks()).data
    parts = needs(population, read_settings(config.deepspeed), Workload.of(data.splits, ranks), Memory.here())
    return sum(parts.values())


async def measure(sweep: Sweep, configs: Sequence[Config], room: Room) -> Pace:
    """Start a worker and let members with these configs make a few updates. Raises UserError where they cannot."""
    short = [override(config, _MEASURED, f"trial {number}") for number, config in enumerate(configs)]
    entries = [Entry(number, config, None) for number, config in enumerate(short)]
    worker, numbers, started = ModelWorker(sweep.settings.ranks, room), list(range(len(short))), time.monotonic()

    async def advance(updates: int, entering: Sequence[Entry] = ()) -> float:
        progress = await worker.advance(list(entering), [], numbers, updates)
        for number, message in progress.failed.items():
            raise UserError(f"trial {number}: {message}")
        return progress.seconds

    try:
        await worker.start()
        fatal = await worker.open(short[0])
        if fatal is not None:
            raise UserError(fatal)
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
    return Pace(start, update, max(validated, 0.0), max(ended, 0.0))


def duration(seconds: float) -> str:
    """In words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
