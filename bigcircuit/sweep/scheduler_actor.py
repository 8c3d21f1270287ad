"""The Ray actor on the driver's node that assigns trials to slots of workers, and answers Tune's requests for their reports.

A trial that Tune's scheduler may stop is trained only while Tune requests its next report, so it makes no update too many. Where
all trials are known ahead and none is stopped early they are queued from the start, and reports wait for Tune's requests.
"""

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.sweep.call_policy import LONG_CALL_SECONDS, CallPolicy, SlotUse
from bigcircuit.sweep.cluster import WorkerResources
from bigcircuit.sweep.config import Sweep, is_known_ahead, shares_data
from bigcircuit.sweep.messages import PhaseReceiver, Progress, SweepStatus
from bigcircuit.sweep.slot_assignment import SlotAssignment
from bigcircuit.sweep.trial_states import TrialStates, last_report, validation_report
from bigcircuit.sweep.worker_group import WorkerGroup, WorkerLost

_MAX_EMPTY_LOSSES = 3
"""Losses of workers without a trial, one after the other, that end the sweep: no trial can be the cause."""
_PHASE_SECONDS = 25.0
"""Time for which a line about a phase is shown: two lines and a half."""
_NO_TRIAL, _DONE = -1, {"number": -1, "done": True}
"""Number of a trial that Tune starts once the sweep has ended, and the report of every trial from then on: it ends Tune, too."""


class SchedulerActor:
    """Scheduler of a sweep: its workers, their slots, the states of its trials, and Tune's requests."""

    def __init__(
        self,
        sweep: Sweep,
        resources: WorkerResources,
        planned: Sequence[Mapping[str, Any]],
        total: int,
        command: Sequence[str],
    ) -> None:
        """planned: settings of the trials that are known ahead; total: number of trials; command: the words for config.json."""
        self._sweep, self._total = sweep, total
        self._trials = TrialStates(sweep, planned, command)
        self._assignment = SlotAssignment()
        self._policy = CallPolicy()
        self._workers = [WorkerGroup(sweep.settings.ranks, resources) for _ in range(resources.workers)]
        self._usable_workers = set(self._workers)
        """Workers that are up, and those that have not been started yet."""
        self._requests: dict[int, asyncio.Future] = {}
        """Tune's open request for the next report of a trial."""
        self._known_ahead = is_known_ahead(sweep.settings)
        self._opened = asyncio.Event()
        """Set once torch is imported and known trials are open."""
        self._changed, self._last_change = asyncio.Event(), 0.0
        self._draining, self._open_calls = False, 0
        self._fatal_error: Exception | None = None
        self._loss_reasons: list[str] = []
        self._phases: dict[int, tuple[str, float]] = {}
        """Number of a worker -> the last line about its phase, and when it came."""
        self._notes: dict[str, None] = {}
        """Lines of the workers about model and pairs, each once, in order."""
        self._empty_losses, self._updates = 0, 0
        """Losses of workers without a trial since the last successful call; updates since this start, summed over trials."""

    async def serve(self, own: Any = None) -> None:
        """Keep all workers busy until the sweep is shut down. Torch is imported while they start.

        own: handle of this actor, for the workers.
        """
        tasks = [
            asyncio.ensure_future(self._serve_worker(worker, None if own is None else PhaseReceiver(own, number)))
            for number, worker in enumerate(self._workers)
        ]
        try:
            await asyncio.to_thread(self._trials.import_torch)
            for number in list(self._trials.records) if self._known_ahead else ():
                self._trials.open(number)
                if not self._trials.ended(number):
                    self._assignment.enqueue(number)
            self._notify()
            self._opened.set()
            await asyncio.gather(*tasks)
        except Exception as error:
            self._fatal_error = error
            raise
        finally:
            self._opened.set()
            await self.drain()

    # Requests of TuneTrial

    async def register(self, name: str, settings: dict[str, Any]) -> int:
        """Return the number of the trial that Tune calls `name`. A trial that is registered already changes to these settings."""
        await self._opened.wait()
        if self._draining:
            return _NO_TRIAL
        number = self._trials.number_of(name)
        if number is None:
            return self._trials.register(name, settings)
        self._evict(number)
        self._trials.change_settings(number, settings)
        return number

    async def next_report(self, number: int) -> dict[str, Any]:
        """Return the next report of a trial, as Tune takes it, once there is one."""
        if self._draining:
            return _DONE
        if self._trials.reports[number]:
            return self._trials.reports[number].popleft()
        if self._trials.ended(number):
            return last_report(self._trials.records[number])
        self._requests[number] = asyncio.get_running_loop().create_future()
        if not self._known_ahead:
            self._trials.mark_decided(number)
            self._assignment.enqueue(number)
        self._notify()
        return await self._requests[number]

    async def stop_trial(self, number: int) -> None:
        """Free the slot of a trial that Tune's scheduler has stopped, or that has ended."""
        if not self._draining:
            self._trials.stop(number)
        if number != _NO_TRIAL:
            self._evict(number)

    async def save_checkpoint(self, number: int, folder: str) -> None:
        """See TrialStates.save_checkpoint."""
        self._trials.save_checkpoint(number, Path(folder))

    async def load_checkpoint(self, number: int, folder: str) -> None:
        """See TrialStates.load_checkpoint."""
        self._trials.load_checkpoint(number, Path(folder))

    # Messages of the workers

    async def show_phase(self, worker: int, line: str) -> None:
        """Store a line about the phase that a worker is in."""
        self._phases[worker] = line, time.monotonic()

    # Requests of the driver

    async def status(self) -> SweepStatus:
        """Return the state of the sweep for the live table."""
        records, assigned = list(self._trials.records.values()), self._assignment.by_worker()
        return SweepStatus(
            records=records,
            total=self._total,
            assigned=assigned,
            slots=self._sweep.settings.slots * len(self._workers),
            rate=self._policy.rate() * max(1, len(assigned)),
            updates=self._updates,
            steps=max((record.steps for record in records), default=0) or self._sweep.config.train.steps,
            loss_reasons=self._loss_reasons,
            phases={
                worker: line
                for worker, (line, came) in sorted(self._phases.items())
                if time.monotonic() - came < _PHASE_SECONDS
            },
            notes=list(self._notes),
        )

    async def fatal_error(self) -> Exception | None:
        """Return the error that has ended the sweep before its time, if there is one."""
        return self._fatal_error

    async def drain(self) -> None:
        """Begin no more calls, and report the end of every trial to Tune."""
        self._draining = True
        for number in list(self._requests):
            self._reply(number, _DONE)
        self._notify()

    async def shut_down(self) -> bool:
        """Wait for open calls, save every trial that has not ended, shut the workers down and write the sweep's outputs.

        Returns whether the outputs are written.
        """
        await self.drain()
        until = time.monotonic() + 3 * LONG_CALL_SECONDS
        while self._open_calls and time.monotonic() < until:
            await asyncio.sleep(0.05)
        self._trials.save_all()
        for worker in self._workers:
            worker.shut_down()
        with suppress(Exception):  # the driver then writes the outputs itself, and reports the same error
            await asyncio.to_thread(self._trials.write_outputs)
            return True
        return False

    # Calls to workers

    async def _serve_worker(self, worker: WorkerGroup, on_phase: PhaseReceiver | None) -> None:
        """Keep one worker busy for the whole sweep; when it is lost its trials are queued again and it is restarted."""
        while not self._draining:
            try:
                await worker.start(on_phase)
                self._usable_workers.add(worker)
                if shares_data(self._sweep.settings):
                    await worker.load(self._sweep.config)
                self._assignment.add_worker(worker)
                while not self._draining:
                    await self._advance(worker)
            except WorkerLost as error:
                self._handle_loss(worker, str(error))
                worker.shut_down()
                await asyncio.sleep(1.0)

    async def _advance(self, worker: WorkerGroup) -> None:
        new, ready = await self._next_call(worker)
        if not ready or self._draining:
            return
        assignments, evicted = [self._trials.assign(number) for number in new], self._assignment.pop_evicted(worker)
        self._open_calls += 1
        try:
            progress = await worker.advance(assignments, evicted, ready, self._max_updates(worker))
            self._record(worker, progress)
            self._empty_losses = 0
            for number in self._assignment.release(worker):
                self._trials.mark_waiting(number)
                if self._known_ahead or number in self._requests:
                    self._assignment.enqueue(number)
        finally:
            self._open_calls -= 1
            self._phases.pop(self._workers.index(worker), None)

    async def _next_call(self, worker: WorkerGroup) -> tuple[list[int], list[int]]:
        """Wait for the next call to a worker. Returns the trials newly assigned to it and those to train; both empty at the end."""
        new: list[int] = []
        while not self._draining:
            self._changed.clear()
            slots = min(self._sweep.settings.slots, self._trials_per_worker())
            new += self._assignment.fill_slots(worker, slots)
            assigned = self._assignment.trials_of(worker)
            new = [number for number in new if number in assigned]
            ready = [number for number in assigned if self._known_ahead or number in self._requests]
            use = SlotUse(
                requested=len(ready),
                assigned=len(assigned),
                slots=slots,
                queued=len(self._assignment.queue),
                more_expected=self._more_expected(),
                quiet=time.monotonic() - self._last_change,
            )
            if use.has_paused():
                for number in set(assigned) - set(ready):
                    self._evict(number)
                continue
            if use.may_begin():
                return new, ready
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.2)
        return [], []

    def _more_expected(self) -> bool:
        """Return whether Tune is going to start more trials."""
        return not self._known_ahead and self._trials.registered < self._total

    def _trials_per_worker(self) -> int:
        """Return the share of each usable worker in the trials that have not ended."""
        ended = sum(map(self._trials.ended, self._trials.records))
        return -(-(self._total - ended) // max(1, len(self._usable_workers)))

    def _max_updates(self, worker: WorkerGroup) -> int:
        """Return how many updates the next call to a worker may make."""
        if self._assignment.quarantined(worker):
            return (
                sys.maxsize
            )  # up to the next report, as far as the call may have been meant to go in which a worker was lost
        has_free = len(self._assignment.trials_of(worker)) < self._sweep.settings.slots
        return self._policy.max_updates(has_free and self._more_expected())

    def _record(self, worker: WorkerGroup, progress: Progress) -> None:
        """Record the result of a call and reply to the requests that it answers."""
        self._updates += progress.updates * len(progress.steps)
        self._notes.update(dict.fromkeys(progress.notes))
        self._policy.record(progress.seconds, progress.updates)
        self._trials.record(progress, self._assignment.trials_of(worker))
        self._assignment.discard(worker, [*progress.results, *progress.failures])
        for number in progress.failures:
            self._reply(number, last_report(self._trials.records[number]))
        for number, row in progress.validations.items():
            self._reply(number, validation_report(number, row, done=number in progress.results))

    def _reply(self, number: int, report: dict[str, Any]) -> None:
        """Reply to the open request for a trial's report; without one the report waits where all trials are known ahead."""
        request = self._requests.pop(number, None)
        if request is not None and not request.done():
            request.set_result(report)
        elif self._known_ahead:
            self._trials.reports[number].append(report)
        self._notify()

    def _evict(self, number: int) -> None:
        """Take a trial out of its slot and drop the open request for its report."""
        self._assignment.evict(number)
        self._trials.mark_waiting(number)
        self._requests.pop(number, None)
        self._notify()

    def _handle_loss(self, worker: WorkerGroup, reason: str) -> None:
        """Put the trials of a lost worker at the front of the queue; they resume from their last state.

        Raises UserError when workers are lost again and again before they have a trial.
        """
        self._usable_workers.discard(worker)
        if reason not in self._loss_reasons:
            self._loss_reasons.append(reason)
        trials = self._assignment.remove_worker(worker)
        self._empty_losses += not trials
        if self._empty_losses >= _MAX_EMPTY_LOSSES:
            raise UserError(f"no model worker comes up: {_MAX_EMPTY_LOSSES} were lost in a row, the last by {reason}")
        for number in reversed(trials):
            self._trials.record_loss(number, reason, alone=len(trials) == 1)
            if self._trials.ended(number):
                self._reply(number, last_report(self._trials.records[number]))
            else:
                self._assignment.queue.appendleft(number)
        self._notify()

    def _notify(self) -> None:
        """Wake all waits for the next call: trials, slots or requests have changed."""
        self._last_change = time.monotonic()
        self._changed.set()
