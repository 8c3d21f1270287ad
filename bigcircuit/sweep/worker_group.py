"""Model workers: groups of ranks, as plain actors in one placement group, that go through the same calls together."""

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
from bigcircuit.sweep.cluster import Room

_ECHO = 5.0
"""Seconds within which the death of a rank is known, after another rank's error that may come of it."""


class WorkerLost(Exception):
    """A rank of a worker has died, or its machine, or it has met an error that nobody expected."""


class RankActor:
    """The actor of one rank. Torch is loaded in its process alone."""

    def address(self) -> tuple[str, int, str]:
        """Where the ranks can meet, and the node this one is on."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1], ray.get_runtime_context().get_node_id()

    def join(self, rank: int, size: int, host: str, port: int, local: int, threads: int) -> None:
        """Become one of `size` ranks; local: its number among those on its node."""
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local)}
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
        # Here, before torch is loaded, and not as Ray's runtime_env: with one Ray starts another process, a second later.
        os.environ |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        import torch

        from bigcircuit.distributed.ranks import join_ranks
        from bigcircuit.sweep.model_replica import Replica

        torch.set_num_threads(threads)
        self._host = Replica(join_ranks(rank, size, 0))

    def open(self, config: Config) -> None:
        """See Host.open."""
        self._host.open(config)

    def advance(self, *arguments: Any) -> Any:
        """See Host.advance."""
        return self._host.advance(*arguments)


class WorkerGroup:
    """The ranks that hold one copy of the model.

    Any call raises WorkerLost when one of them is gone, and what a rank raises for the user.
    """

    def __init__(self, ranks: int, room: Room) -> None:
        self._size, self._room = ranks, room
        self._bundle = {"CPU": float(room.cpus)} | ({"GPU": room.gpus} if room.gpus else {})
        self._group: Any = None
        self._ranks: list[Any] = []

    async def start(self) -> None:
        """Wait for room in the cluster and start the ranks there, with as many threads as they have cores."""
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
        places = await self._all("address")
        nodes = [node for _, _, node in places]
        host, port, _ = places[0]
        local = [nodes[:index].count(node) for index, node in enumerate(nodes)]
        calls = [
            rank.join.remote(index, size, host, port, local[index], self._room.cpus)
            for index, rank in enumerate(self._ranks)
        ]
        await self._answers(calls)

    async def open(self, config: Config) -> None:
        """See Host.open."""
        await self._all("open", config)

    async def advance(self, entries: Sequence[Any], leaving: Sequence[int], ready: Sequence[int], limit: int) -> Any:
        """See Host.advance."""
        return (await self._all("advance", entries, leaving, ready, limit))[0]

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        shared = [ray.put(argument) for argument in arguments]
        return await self._answers([getattr(rank, method).remote(*shared) for rank in self._ranks])

    async def _answers(self, calls: Sequence[Any]) -> list[Any]:
        """The answers of all ranks; when one is lost nobody waits for the others, which wait for it."""
        tasks = [asyncio.ensure_future(_answer(call)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        except ray.exceptions.RayError as error:
            await asyncio.wait(tasks, timeout=_ECHO)
            errors = [task.exception() for task in tasks if task.done()]
            died = [one for one in errors if one is not None and not isinstance(one, ray.exceptions.RayTaskError)]
            if not died and isinstance(error, ReportedError):
                raise error.cause from None  # as the rank raised it, without Ray's traceback
            raise WorkerLost(_reason(died[0] if died else error)) from error
        finally:
            for task in tasks:
                task.cancel()

    def release(self) -> None:
        """End the ranks and give their place back."""
        for rank in self._ranks:
            ray.kill(rank)
        if self._group is not None:
            remove_placement_group(self._group)
        self._ranks, self._group = [], None


async def _answer(call: Any) -> Any:
    return await call


def _reason(error: BaseException) -> str:
    """In one line: what a rank raised, or the first line of what Ray says."""
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
