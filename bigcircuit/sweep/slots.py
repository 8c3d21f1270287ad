"""Where trials and model workers meet: an actor on the driver's node that hands trials to free slots and writes what they find.

A trial that a scheduler may stop advances only when Tune has asked for its next report, so it makes no update too many; workers
wait a little for trials that are to come, because members in step share their passes. Where all trials are known ahead and none
is stopped early they are seated from the start, and Tune hears of each what it has found by then.
"""

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigcircuit.config import Config
from bigcircuit.errors import UserError
from bigcircuit.sweep.cluster import Room
from bigcircuit.sweep.messages import Entry, Progress
from bigcircuit.sweep.record import OVER, Record, read_records
from bigcircuit.sweep.settings import Sweep, known_ahead
from bigcircuit.sweep.worker import ModelWorker, WorkerLost

if TYPE_CHECKING:
    from bigcircuit.checkpoint import State
    from bigcircuit.sweep.trial_folder import TrialFolder

_GATHER, _PATIENCE = 2.0, 10.0
"""Seconds: to wait for more trials to fill the slots, and for a seated trial that does not ask."""
_PAUSED = 1.0
"""Seconds after which a seated trial that does not ask leaves its slot to one that waits: the scheduler has paused it."""
_LONG, _SHORT = 5.0, 1.0
"""Seconds that a call to a worker may take, and while others may want to come in."""
_LIVES = 3
"""Workers that may be lost under a trial before it is held to be the cause."""


class Slots:
    """All trials of a sweep, and the workers with their slots."""

    def __init__(
        self,
        sweep: Sweep,
        room: Room,
        planned: Sequence[Mapping[str, Any]],
        total: int,
        command: Sequence[str],
    ) -> None:
        """planned: the settings of trials that are known ahead; total: how many trials there will be."""
        self._sweep, self._total, self._command = sweep, total, command
        self._folder = Path(sweep.config.output) / "trials"
        records = {number: Record(number, dict(settings), dict(settings)) for number, settings in enumerate(planned)}
        records |= {record.number: record for record in read_records(Path(sweep.config.output))}
        self._records = dict(sorted(records.items()))
        self._trials: dict[int, TrialFolder] = {}
        self._loaded = asyncio.Event()
        self._names: dict[str, int] = {}
        self._configs: dict[int, Config] = {}
        self._states: dict[int, State] = {}
        self._replays: dict[int, deque[dict[str, Any]]] = {}
        self._asked: dict[int, asyncio.Future] = {}
        self._queue: deque[int] = deque()
        self._losses: dict[int, int] = {}
        self._seated: dict[ModelWorker, list[int]] = {}
        self._leaving: dict[ModelWorker, list[int]] = {}
        self._workers = [ModelWorker(sweep.settings.ranks, room) for _ in range(room.workers)]
        self._changed, self._last_change = asyncio.Event(), 0.0
        self._ahead = known_ahead(sweep.settings)
        self._present = set(self._workers)
        self._halting, self._busy = False, 0
        self.fatal: str | None = None
        self._rate: deque[tuple[float, int]] = deque(maxlen=20)

    async def serve(self) -> None:
        """Keep all workers busy until the sweep is halted. Torch is loaded while they start."""
        tasks = [asyncio.ensure_future(self._serve(worker)) for worker in self._workers]
        try:
            folders = await asyncio.to_thread(import_module, "bigcircuit.sweep.trial_folder")
            self._make_folder = folders.TrialFolder
            if self._ahead:
                for number in self._records:
                    self._replay(number)
                self._queue.extend(number for number, record in self._records.items() if record.status not in OVER)
                self._change()
            self._loaded.set()
            await asyncio.gather(*tasks)
        except Exception as error:
            self.fatal = repr(error)
            raise
        finally:
            self._loaded.set()
            for number in list(self._asked) if self.fatal is not None else ():
                self._answer(number, {"error": self.fatal})

    # What trials ask for

    async def take(self, name: str, settings: dict[str, Any]) -> int:
        """The number of the trial that Tune calls `name`. One of a sweep that goes on is known by its settings."""
        await self._loaded.wait()
        if self.fatal is not None:
            raise RuntimeError(self.fatal)
        if name in self._names:
            number = self._names[name]
            self._unseat(number)
            self._change_settings(number, settings)
        else:
            number = self._known(settings)
            self._names[name] = number
            if number not in self._trials:
                self._replay(number)
        return number

    async def report(self, number: int) -> dict[str, Any]:
        """The next report of a trial, as Tune wants it; waits until there is one."""
        if self._replays.get(number):
            return self._replays[number].popleft()
        if self._records[number].status in OVER:
            return _ended(self._records[number])
        if self.fatal is not None:
            return {"error": self.fatal}
        self._asked[number] = asyncio.get_running_loop().create_future()
        seated = any(number in numbers for numbers in self._seated.values())
        if not self._ahead and number not in self._queue and not seated:
            self._queue.append(number)
        self._change()
        return await self._asked[number]

    async def stop(self, number: int) -> None:
        """The scheduler has stopped a trial, or it has ended; its slot is free at once."""
        record = self._records[number]
        if record.status not in OVER and not self._halting:
            record.status = "stopped"
            self._trials[number].save()
        self._unseat(number)

    async def keep(self, number: int, folder: str) -> None:
        """Write the state of a trial at its last report to a folder of Tune's."""
        if number in self._states:
            self._trials[number].keep(self._states[number], 1, Path(folder))

    async def go_back(self, number: int, folder: str) -> None:
        """Let a trial go on from a state that `keep` has written, its own or another one's."""
        state = self._trials[number].newest(Path(folder))
        if state is not None:
            self._states[number] = state

    # What the driver asks for

    async def status(self) -> dict[str, Any]:
        """What the live table shows."""
        records = list(self._records.values())
        seconds, updates = (sum(column) for column in zip(*self._rate, strict=True)) if self._rate else (0.0, 0)
        return {
            "records": records,
            "total": self._total,
            "seated": [list(seated) for seated in self._seated.values()],
            "slots": self._sweep.settings.slots * len(self._workers),
            "rate": updates / seconds * max(1, len(self._seated)) if seconds else 0.0,
            "steps": max((record.steps for record in records), default=0) or self._sweep.config.train.steps,
            "fatal": self.fatal,
        }

    async def halt(self) -> bool:
        """Let the workers end their calls, save every trial that runs, release the workers, and write what is made of the trials.

        Returns whether that could be done here.
        """
        self._halting = True
        self._change()
        until = time.monotonic() + 3 * _LONG
        while self._busy and time.monotonic() < until:
            await asyncio.sleep(0.05)
        for number, state in self._states.items():
            if self._records[number].status == "running":
                self._trials[number].keep(state, self._sweep.config.train.keep_checkpoints)
                self._trials[number].save()
        for worker in self._workers:
            worker.release()
        with suppress(Exception):  # whatever it is, the driver meets it too and says so
            outcome = await asyncio.to_thread(import_module, "bigcircuit.sweep.outcome")
            await asyncio.to_thread(outcome.write_outcome, Path(self._sweep.config.output))
            return True
        return False

    # Inside

    def _known(self, settings: dict[str, Any]) -> int:
        taken = set(self._names.values())
        for number, record in self._records.items():
            if number not in taken and record.drawn == settings:
                return number
        number = max(self._records, default=-1) + 1
        self._records[number] = Record(number, settings, dict(settings))
        return number

    def _change_settings(self, number: int, settings: dict[str, Any]) -> None:
        """Population-based training lets a trial go on with others."""
        self._records[number].settings = settings
        try:
            self._configs[number] = self._sweep.trial(settings, number)
        except UserError as error:
            return self._fail(number, str(error))
        return self._trials[number].configure(self._configs[number], self._command)

    def _replay(self, number: int) -> None:
        """Prepare a trial: what it reported before is reported again, for the search and the scheduler to know."""
        record = self._records[number]
        trial = self._trials[number] = self._make_folder(self._folder / f"{number:03d}", record)
        replays = self._replays[number] = deque()
        trial.save()
        if record.status not in OVER:
            try:
                self._configs[number] = config = self._sweep.trial(record.settings, number)
            except UserError as error:
                self._fail(number, str(error))
                return
            state = trial.begin(config, self._command)
            if state is not None:
                self._states[number] = state
            record.status = "running"
            trial.save()
        replays.extend(_report(number, row) for row in trial.validations())
        if replays and record.status in ("finished", "stopped"):
            replays[-1]["done"] = True

    def _unseat(self, number: int) -> None:
        for worker, seated in self._seated.items():
            if number in seated:
                seated.remove(number)
                self._leaving[worker].append(number)
        with suppress(ValueError):
            self._queue.remove(number)
        self._asked.pop(number, None)
        self._change()

    def _change(self) -> None:
        self._last_change = time.monotonic()
        self._changed.set()

    async def _serve(self, worker: ModelWorker) -> None:
        """Keep one worker busy for the whole sweep; when it is lost its trials move and it is started again."""
        while not self._halting and self.fatal is None:
            try:
                await worker.start()
                self._present.add(worker)
                if all(not key.startswith(("task.", "model.")) for key in self._sweep.settings.space):
                    self.fatal = await worker.open(self._sweep.config)
                self._seated[worker], self._leaving[worker] = [], []
                while not self._halting and self.fatal is None:
                    await self._advance(worker)
            except WorkerLost as error:
                self._lost(worker, str(error))
                worker.release()
                await asyncio.sleep(1.0)

    async def _advance(self, worker: ModelWorker) -> None:
        entering, ready = await self._ready(worker)
        if not ready or self._halting:
            return
        entries = [Entry(number, self._configs[number], self._states.get(number)) for number in entering]
        leaving, self._leaving[worker] = self._leaving[worker], []
        self._busy += 1
        try:
            self._take_in(worker, await worker.advance(entries, leaving, ready, self._limit(worker)))
        finally:
            self._busy -= 1

    async def _ready(self, worker: ModelWorker) -> tuple[list[int], list[int]]:
        """Trials that come in, and those that are to advance; waits for what is worth waiting for."""
        seated, entering = self._seated[worker], []
        while not self._halting:
            self._changed.clear()
            slots = min(self._sweep.settings.slots, self._share())
            while self._queue and len(seated) < slots:
                entering.append(self._queue.popleft())
                seated.append(entering[-1])
            entering = [number for number in entering if number in seated]
            asking = [number for number in seated if self._ahead or number in self._asked]
            quiet = time.monotonic() - self._last_change
            paused = set(seated) - set(asking) if self._queue and quiet > _PAUSED else set()
            if paused:
                for number in paused:
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
        return not self._ahead and len(self._names) < self._total

    def _share(self) -> int:
        """Of the trials that are not over, those of each worker that is there or about to be."""
        over = sum(record.status in OVER for record in self._records.values())
        return -(-(self._total - over) // max(1, len(self._present)))

    def _limit(self, worker: ModelWorker) -> int:
        """Updates that take about as long as a call may take."""
        if not self._rate:
            return 2
        free = len(self._seated[worker]) < self._sweep.settings.slots and self._expected()
        seconds, passes = sum(s for s, _ in self._rate), sum(n for _, n in self._rate)
        return max(1, int((_SHORT if free else _LONG) * passes / max(seconds, 1e-9)))

    def _take_in(self, worker: ModelWorker, progress: Progress) -> None:
        """Write down what came of a call and answer those who asked for it."""
        if progress.updates:
            self._rate.append((progress.seconds, progress.updates))
        settings = self._sweep.config.train
        self._states |= progress.states
        for number, step in progress.steps.items():
            trial, record = self._trials[number], self._records[number]
            record.step, record.seconds = step, record.seconds + progress.seconds
            record.updates += progress.updates
            record.validation = progress.validations.get(number, record.validation)
            if number in self._seated[worker] or number in progress.endings:
                trial.log(progress.rows.get(number, []))
            if number in progress.endings:
                trial.finish(progress.endings[number])
                record.status = "finished"
                self._states.pop(number, None)
            elif number in progress.validations or step % settings.save_every == 0:
                trial.keep(progress.states[number], settings.keep_checkpoints)
            trial.save()
        for number, message in progress.failed.items():
            self._fail(number, message)
        for number in [*progress.endings, *progress.failed]:
            with suppress(ValueError):
                self._seated[worker].remove(number)
        for number, row in progress.validations.items():
            self._answer(number, _report(number, row, done=number in progress.endings))

    def _fail(self, number: int, message: str) -> None:
        record = self._records[number]
        record.status, record.error = "failed", message
        self._trials[number].save()
        self._answer(number, _ended(record))

    def _answer(self, number: int, report: dict[str, Any]) -> None:
        future = self._asked.pop(number, None)
        if future is not None and not future.done():
            future.set_result(report)
        elif self._ahead:
            self._replays[number].append(report)
        self._change()

    def _lost(self, worker: ModelWorker, reason: str) -> None:
        """Send the trials of a lost worker to the front of the queue; they go on from their last state."""
        self._present.discard(worker)
        for number in reversed(self._seated.pop(worker, [])):
            self._losses[number] = self._losses.get(number, 0) + 1
            if self._losses[number] >= _LIVES:
                self._fail(number, f"{_LIVES} workers were lost with it, the last by {reason}")
            elif self._records[number].status not in OVER:
                self._queue.appendleft(number)
        self._change()


def _report(number: int, row: Mapping[str, Any], done: bool = False) -> dict[str, Any]:
    """What Tune is told of a validation."""
    names = {"objective": "objective", "kl": "kl", "neurons": "kept.total"}
    values = {name: row[f"validation.{key}"] for name, key in names.items()}
    return {"number": number, "step": row["step"], **values, "done": done}


def _ended(record: Record) -> dict[str, Any]:
    return {"number": record.number, "error": record.error} if record.error else {"number": record.number, "done": True}
