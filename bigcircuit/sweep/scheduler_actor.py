"""Where trials and model workers meet: an actor on the driver's node that hands trials to free slots and writes what they find.

A trial that a scheduler may stop advances only when Tune has asked for its next report, so it makes no update too many; workers
wait a little for trials that are to come, because members in step share their passes. Where all trials are known ahead and none
is stopped early they are seated from the start, and Tune hears of each what it has found by then.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.sweep.cluster import Room
from bigcircuit.sweep.config import Sweep, is_known_ahead, shares_data
from bigcircuit.sweep.messages import Progress
from bigcircuit.sweep.slot_assignment import SlotAssignment
from bigcircuit.sweep.trial_states import TrialStates, last_report, report
from bigcircuit.sweep.worker_group import WorkerGroup, WorkerLost

_GATHER, _PATIENCE = 2.0, 10.0
"""Seconds: to wait for more trials to fill the slots, and for a seated trial that does not ask."""
_PAUSED = 1.0
"""Seconds after which a seated trial that does not ask leaves its slot to one that waits: the scheduler has paused it."""
_LONG, _SHORT = 5.0, 1.0
"""Seconds that a call to a worker may take, and while others may want to come in."""
_BARREN = 3
"""Workers that may be lost one after the other before they have a trial."""

_NOBODY, _DONE = -1, {"number": -1, "done": True}
"""A trial that Tune names once the sweep has ended, and what any trial reports then: Tune is to end, too."""


class SchedulerActor:
    """The workers of a sweep with their slots, and the trials that come and go."""

    def __init__(
        self,
        sweep: Sweep,
        room: Room,
        planned: Sequence[Mapping[str, Any]],
        total: int,
        command: Sequence[str],
    ) -> None:
        """planned: the settings of trials that are known ahead; total: how many trials there will be."""
        self._sweep, self._total = sweep, total
        self._trials = TrialStates(sweep, planned, command)
        self._seats = SlotAssignment()
        self._workers = [WorkerGroup(sweep.settings.ranks, room) for _ in range(room.workers)]
        self._present = set(self._workers)
        self._asked: dict[int, asyncio.Future] = {}
        self._ahead = is_known_ahead(sweep.settings)
        self._loaded = asyncio.Event()
        self._changed, self._last_change = asyncio.Event(), 0.0
        self._ended, self._busy = False, 0
        self._rate: deque[tuple[float, int]] = deque(maxlen=20)
        self._fatal: Exception | None = None
        self._losses: list[str] = []
        """Why workers were lost, each reason once."""
        self._barren = 0
        """Workers lost in a row before a trial had a seat there."""
        self._made = 0
        """Updates since this start, of all trials."""

    async def serve(self) -> None:
        """Keep all workers busy until the sweep is halted. Torch is loaded while they start."""
        tasks = [asyncio.ensure_future(self._serve(worker)) for worker in self._workers]
        try:
            await asyncio.to_thread(self._trials.load)
            for number in list(self._trials.records) if self._ahead else ():
                self._trials.open(number)
                if not self._trials.over(number):
                    self._seats.wait(number)
            self._change()
            self._loaded.set()
            await asyncio.gather(*tasks)
        except Exception as error:
            self._fatal = error
            raise
        finally:
            self._loaded.set()
            await self.end()

    # What trials ask for

    async def take(self, name: str, settings: dict[str, Any]) -> int:
        """The number of the trial that Tune calls `name`; one it has named before goes on with these settings."""
        await self._loaded.wait()
        if self._ended:
            return _NOBODY
        number = self._trials.number(name)
        if number is None:
            return self._trials.meet(name, settings)
        self._unseat(number)
        self._trials.change(number, settings)
        return number

    async def report(self, number: int) -> dict[str, Any]:
        """The next report of a trial, as Tune wants it; waits until there is one."""
        if self._ended:
            return _DONE
        if self._trials.reports[number]:
            return self._trials.reports[number].popleft()
        if self._trials.over(number):
            return last_report(self._trials.records[number])
        self._asked[number] = asyncio.get_running_loop().create_future()
        if not self._ahead:
            self._trials.let_on(number)
            self._seats.wait(number)
        self._change()
        return await self._asked[number]

    async def stop(self, number: int) -> None:
        """The scheduler has stopped a trial, or it has ended; its slot is free at once."""
        if not self._ended:
            self._trials.stop(number)
        if number != _NOBODY:
            self._unseat(number)

    async def keep(self, number: int, folder: str) -> None:
        """See Trials.keep."""
        self._trials.keep(number, Path(folder))

    async def go_back(self, number: int, folder: str) -> None:
        """See Trials.go_back."""
        self._trials.go_back(number, Path(folder))

    # What the driver asks for

    async def status(self) -> dict[str, Any]:
        """What the live table shows."""
        records, seated = list(self._trials.records.values()), self._seats.all()
        seconds, updates = self._speed()
        return {
            "records": records,
            "total": self._total,
            "seated": seated,
            "slots": self._sweep.settings.slots * len(self._workers),
            "rate": updates / seconds * max(1, len(seated)) if updates else 0.0,
            "made": self._made,
            "steps": max((record.steps for record in records), default=0) or self._sweep.config.train.steps,
            "losses": self._losses,
        }

    async def fatal(self) -> Exception | None:
        """What has ended the sweep before its time, if anything has."""
        return self._fatal

    async def end(self) -> None:
        """Begin no more calls, and let Tune have an end of every trial."""
        self._ended = True
        for number in list(self._asked):
            self._answer(number, _DONE)
        self._change()

    async def halt(self) -> bool:
        """Let the workers end their calls, save every trial that runs, release the workers, and write what is made of the trials.

        Returns whether that could be done here.
        """
        await self.end()
        until = time.monotonic() + 3 * _LONG
        while self._busy and time.monotonic() < until:
            await asyncio.sleep(0.05)
        self._trials.save()
        for worker in self._workers:
            worker.release()
        with suppress(Exception):  # whatever it is, the driver meets it too and says so
            outcome = await asyncio.to_thread(import_module, "bigcircuit.report.sweep_outputs")
            await asyncio.to_thread(outcome.write_outcome, Path(self._sweep.config.output))
            return True
        return False

    # Inside

    async def _serve(self, worker: WorkerGroup) -> None:
        """Keep one worker busy for the whole sweep; when it is lost its trials move and it is started again."""
        while not self._ended:
            try:
                await worker.start()
                self._present.add(worker)
                if shares_data(self._sweep.settings):
                    await worker.open(self._sweep.config)
                self._seats.arrived(worker)
                while not self._ended:
                    await self._advance(worker)
            except WorkerLost as error:
                self._lost(worker, str(error))
                worker.release()
                await asyncio.sleep(1.0)

    async def _advance(self, worker: WorkerGroup) -> None:
        entering, ready = await self._ready(worker)
        if not ready or self._ended:
            return
        entries, leaving = [self._trials.entry(number) for number in entering], self._seats.leaving(worker)
        self._busy += 1
        try:
            self._take_in(worker, await worker.advance(entries, leaving, ready, self._limit(worker)))
            self._barren = 0
            for number in self._seats.acquit(worker):
                self._trials.wait(number)
                if self._ahead or number in self._asked:
                    self._seats.wait(number)
        finally:
            self._busy -= 1

    async def _ready(self, worker: WorkerGroup) -> tuple[list[int], list[int]]:
        """Trials that come in, and those that are to advance; waits for what is worth waiting for."""
        entering: list[int] = []
        while not self._ended:
            self._changed.clear()
            slots = min(self._sweep.settings.slots, self._share())
            entering += self._seats.fill(worker, slots)
            seated = self._seats.of(worker)
            entering = [number for number in entering if number in seated]
            asking = [number for number in seated if self._ahead or number in self._asked]
            quiet = time.monotonic() - self._last_change
            if self._seats.queue and len(asking) < len(seated) and quiet > _PAUSED:
                for number in set(seated) - set(asking):
                    self._unseat(number)
                continue
            waiting = len(asking) < len(seated) and quiet < _PATIENCE
            gathering = len(seated) < slots and self._expected() and quiet < _GATHER
            if asking and not waiting and not gathering:
                return entering, asking
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.2)
        return [], []

    def _expected(self) -> bool:
        """Whether more trials are to come."""
        return not self._ahead and self._trials.met < self._total

    def _share(self) -> int:
        """Of the trials that are not over, those of each worker that is there or about to be."""
        over = sum(map(self._trials.over, self._trials.records))
        return -(-(self._total - over) // max(1, len(self._present)))

    def _speed(self) -> tuple[float, int]:
        """Seconds of the last calls, and their updates."""
        return sum(seconds for seconds, _ in self._rate), sum(updates for _, updates in self._rate)

    def _limit(self, worker: WorkerGroup) -> int:
        """Updates that take about as long as a call may take."""
        if self._seats.on_trial(worker):
            return sys.maxsize  # up to its next report, as far as the call may have meant to go that was lost
        seconds, updates = self._speed()
        if not updates:
            return 2
        free = len(self._seats.of(worker)) < self._sweep.settings.slots and self._expected()
        return max(1, int((_SHORT if free else _LONG) * updates / max(seconds, 1e-9)))

    def _take_in(self, worker: WorkerGroup, progress: Progress) -> None:
        """Write down what came of a call and answer those who asked for it."""
        self._made += progress.updates * len(progress.steps)
        if progress.updates:
            self._rate.append((progress.seconds, progress.updates))
        self._trials.take_in(progress, self._seats.of(worker))
        self._seats.left(worker, [*progress.endings, *progress.failed])
        for number in progress.failed:
            self._answer(number, last_report(self._trials.records[number]))
        for number, row in progress.validations.items():
            self._answer(number, report(number, row, done=number in progress.endings))

    def _answer(self, number: int, found: dict[str, Any]) -> None:
        future = self._asked.pop(number, None)
        if future is not None and not future.done():
            future.set_result(found)
        elif self._ahead:
            self._trials.reports[number].append(found)
        self._change()

    def _unseat(self, number: int) -> None:
        self._seats.free(number)
        self._trials.wait(number)
        self._asked.pop(number, None)
        self._change()

    def _lost(self, worker: WorkerGroup, reason: str) -> None:
        """Send the trials of a lost worker to the front of the queue; they go on from their last state.

        One that sat alone may be the cause, and so may what is before any trial.
        """
        self._present.discard(worker)
        if reason not in self._losses:
            self._losses.append(reason)
        seated = self._seats.lost(worker)
        self._barren += not seated
        if self._barren >= _BARREN:
            raise UserError(f"no model worker comes up: {_BARREN} were lost in a row, the last by {reason}")
        for number in reversed(seated):
            self._trials.lost(number, reason, alone=len(seated) == 1)
            if self._trials.over(number):
                self._answer(number, last_report(self._trials.records[number]))
            else:
                self._seats.queue.appendleft(number)
        self._change()

    def _change(self) -> None:
        self._last_change = time.monotonic()
        self._changed.set()
