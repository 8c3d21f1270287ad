"""Model workers: each a group of ranks, one Ray actor per rank in one placement group, which all get the same calls."""

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bigcircuit.config.schema import Config
from bigcircuit.errors import ReportedError
from bigcircuit.sweep.cluster import WorkerResources
from bigcircuit.sweep.messages import Assignment, PhaseReceiver, Progress

_DEATH_NOTICE_SECONDS = 5.0
"""Wait, after an error of one rank, for Ray to report the death of another rank that may have caused it."""


class WorkerLost(Exception):
    """A rank of a worker or its machine has died, or a rank has raised an unexpected error."""


class RankActor:
    """Ray actor of one rank. Loads torch in `join`, in the process of the rank."""

    def address(self) -> tuple[str, int, str]:
        """Return host and free port for a process group, and the id of this rank's node."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1], ray.get_runtime_context().get_node_id()

    def join(
        self,
        rank: int,
        size: int,
        host: str,
        port: int,
        local: int,
        resources: WorkerResources,
        on_phase: PhaseReceiver | None,
    ) -> None:
        """Join the process group as one of `size` ranks.

        local: number among the ranks of its node; resources: its cores, as many threads torch gets, and its device; on_phase: see
        Replica.
        """
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local)}
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
        # Set here, before torch is loaded, and not as Ray's runtime_env, for which Ray starts another process, a second later.
        os.environ |= {"OMP_NUM_THREADS": str(resources.cpus), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        import torch

        from bigcircuit.distributed.ranks import join_ranks
        from bigcircuit.sweep.model_replica import Replica

        torch.set_num_threads(resources.cpus)
        self._replica = Replica(join_ranks(rank, size, 0, resources.device), on_phase)

    def load(self, config: Config) -> None:
        """See Replica.load."""
        self._replica.load(config)

    def advance(self, *arguments: Any) -> Any:
        """See Replica.advance."""
        return self._replica.advance(*arguments)


class WorkerGroup:
    """Worker: the ranks that hold one copy of the model.

    Every call raises WorkerLost when a rank is lost, and ReportedError as a rank raised it.
    """

    def __init__(self, ranks: int, resources: WorkerResources) -> None:
        self._size, self._resources = ranks, resources
        self._bundle = {"CPU": float(resources.cpus)} | ({"GPU": resources.gpus} if resources.gpus else {})
        self._group: Any = None
        self._ranks: list[Any] = []

    async def start(self, on_phase: PhaseReceiver | None = None) -> None:
        """Wait for the resources in the cluster and start the ranks there, each with as many threads as cores.

        on_phase: receives the phases that the worker is in.
        """
        size = self._size
        self._group = placement_group([self._bundle] * size, strategy="PACK")
        await self._group.ready()
        self._ranks = [
            ray.remote(RankActor)
            .options(
                num_cpus=self._bundle["CPU"],
                num_gpus=self._bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
            )
            .remote()
            for index in range(size)
        ]
        addresses = await self._all("address")
        nodes = [node for _, _, node in addresses]
        host, port, _ = addresses[0]
        local = [nodes[:index].count(node) for index, node in enumerate(nodes)]
        calls = [
            rank.join.remote(index, size, host, port, local[index], self._resources, None if index else on_phase)
            for index, rank in enumerate(self._ranks)
        ]
        await self._gather(calls)

    async def load(self, config: Config) -> None:
        """See Replica.load."""
        await self._all("load", config)

    async def advance(
        self, assignments: Sequence[Assignment], evicted: Sequence[int], ready: Sequence[int], max_updates: int
    ) -> Progress:
        """See Replica.advance."""
        return (await self._all("advance", assignments, evicted, ready, max_updates))[0]

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on all ranks. Returns their results by rank."""
        shared = [ray.put(argument) for argument in arguments]
        return await self._gather([getattr(rank, method).remote(*shared) for rank in self._ranks])

    async def _gather(self, calls: Sequence[Any]) -> list[Any]:
        """Wait for the results of all ranks. When a rank is lost the others, which wait for it, are not waited for."""
        tasks = [asyncio.ensure_future(_result(call)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        except ray.exceptions.RayError as error:
            await asyncio.wait(tasks, timeout=_DEATH_NOTICE_SECONDS)
            errors = [task.exception() for task in tasks if task.done()]
            died = [one for one in errors if one is not None and not isinstance(one, ray.exceptions.RayTaskError)]
            if not died and isinstance(error, ray.exceptions.RayTaskError) and isinstance(error, ReportedError):
                raise error.cause from None  # as the rank raised it, without Ray's traceback
            raise WorkerLost(_reason(died[0] if died else error)) from error
        finally:
            for task in tasks:
                task.cancel()

    def shut_down(self) -> None:
        """Kill the ranks and release their resources in the cluster."""
        for rank in self._ranks:
            ray.kill(rank)
        if self._group is not None:
            remove_placement_group(self._group)
        self._ranks, self._group = [], None


async def _result(call: Any) -> Any:
    return await call


def _reason(error: BaseException) -> str:
    """Describe an error in one line: the exception of a rank, or the first line of Ray's message."""
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
