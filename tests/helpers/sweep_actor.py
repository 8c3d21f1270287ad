"""A sweep's scheduler actor with workers in this process, without Ray's processes; a worker is lost when the test wants it.

Importing it needs Ray: `pytest.importorskip("ray")` first.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.sweep.cluster import WorkerResources
from bigcircuit.sweep.config import Sweep, SweepSettings
from bigcircuit.sweep.messages import Assignment
from bigcircuit.sweep.model_replica import Replica
from bigcircuit.sweep.scheduler_actor import SchedulerActor
from bigcircuit.sweep.search import planned_settings
from bigcircuit.sweep.worker_group import WorkerLost
from tests.helpers.short_runs import QUICK


class InProcessWorker:
    """Stands in for WorkerGroup. It is lost when it trains one of the `deadly` trials, or, `stillborn`, before it has any."""

    deadly: set[int] = set()
    stillborn = False
    calls: list[list[int]] = []
    """Trials that could train in each call, over all workers."""

    def __init__(self, *_: Any) -> None:
        pass

    async def start(self, _: Any = None) -> None:
        self.replica = Replica(Ranks())

    async def load(self, _: Any) -> None:
        if self.stillborn:
            raise WorkerLost("it was never well")

    async def advance(
        self, assignments: Sequence[Assignment], evicted: Sequence[int], ready: Sequence[int], max_updates: int
    ) -> Any:
        InProcessWorker.calls.append(list(ready))
        if self.deadly & set(ready):
            raise WorkerLost("it fell over")
        return self.replica.advance(assignments, evicted, ready, max_updates)

    def shut_down(self) -> None:
        self.replica = None


def short_sweep(folder: Path, base: Mapping[str, Any] | None = None, **search: Any) -> Sweep:
    """Three seeds of 6 updates each, as a grid in three slots; base: dotted settings of all trials, search: of the sweep."""
    short: dict[str, Any] = {"train.steps": 6, "train.validate_every": 3, "train.save_every": 3, "target.total": None}
    if not any(key.startswith(("target.", "penalty.")) for key in search.get("space", {})):
        short["penalty.mlp_neuron"] = 1.0
    config = load(None, {**QUICK, **short, **(base or {}), "output": str(folder)})
    return Sweep(config, SweepSettings(**{"space": {"train.seed": [0, 1, 2]}, "search": "grid", "slots": 3, **search}))


def actor_of(sweep: Sweep) -> SchedulerActor:
    """The scheduler actor with one worker."""
    trials = planned_settings(sweep.settings)
    return SchedulerActor(sweep, WorkerResources(workers=1, cpus=1, gpus=0), trials, len(trials), [])


@asynccontextmanager
async def serving(actor: SchedulerActor) -> AsyncIterator[asyncio.Future]:
    """Inside, the actor serves; then it is shut down, and what it raised is raised."""
    task = asyncio.ensure_future(actor.serve())
    try:
        yield task
    finally:
        await actor.shut_down()
        await task


async def run_to_the_end(actor: SchedulerActor) -> None:
    """Serve until all trials have ended."""
    async with serving(actor) as task:
        while not task.done() and not all(record.ended for record in actor._trials.records.values()):
            await asyncio.sleep(0.05)
