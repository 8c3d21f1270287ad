"""One rank of a model worker: a copy of the model, or a piece of one, and the members that train on it.

Members whose settings and step agree share a pass, and so the corrupted stream, the full model's logits and, under ZeRO-3, the
gathers. The order of the data is a function of a member's own step, so a trial finds what `prune` finds with its config,
whoever else is there. Those behind go first: they catch up with others and share their passes from there on.

All ranks of a worker get the same calls and so do the same.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bigcircuit.config.load import override
from bigcircuit.config.schema import Config
from bigcircuit.data.collate import train_order
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import DivergedError, OutOfMemory, ReportedError
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.gates.population import Population
from bigcircuit.io.checkpoint import State
from bigcircuit.memory.fit import explain_out_of_memory
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.sweep.config import kind_of_gates, shared_part
from bigcircuit.sweep.messages import Entry, Progress
from bigcircuit.train.final_circuits import final_circuits
from bigcircuit.train.setup import RunContext, resolve, set_up
from bigcircuit.train.state import MemberState, TrainState, metric_rows
from bigcircuit.train.step import update, validate
from bigcircuit.train.targets import check_targets

_SILENT = ProgressDisplay(speak=False)


@dataclass
class _SharedData:
    """Members with the same shared settings, and what they train on."""

    ground: RunContext
    examples: list[Example]
    training: Targets
    validation: Targets
    steps: int
    """For which the training examples suffice."""


@dataclass
class _Slot:
    """A member in its slot."""

    population: Population
    """It alone."""
    learner: MemberState
    lot: _SharedData
    validated: int


class Replica:
    """A rank, its copies of models, and the members in its slots."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._lots: dict[str, _SharedData] = {}
        self._seats: dict[int, _Slot] = {}

    def open(self, config: Config) -> None:
        """Read model and pairs ahead of the first trial. Raises UserError, and OutOfMemory."""
        self._lot(config)

    def advance(
        self, entries: Sequence[Entry], leaving: Sequence[int], ready: Sequence[int], limit: int
    ) -> Progress | None:
        """Let trials in and out, then train those of `ready` that are furthest behind, together, up to their next report.

        limit: updates at most. Returns what came of it on the first rank, None on others. What a trial meets alone fails it;
        raises OutOfMemory where several do not fit into memory together.
        """
        progress, started = Progress(), time.monotonic()
        for number in leaving:
            self._seats.pop(number, None)
        for entry in entries:
            with self._failing(entry.number, progress):
                self._seats[entry.number] = self._enter(entry)
        cohort = self._cohort([number for number in ready if number in self._seats])
        if len(cohort) == 1:
            with self._failing(cohort[0], progress):
                self._train(cohort, limit, progress)
        elif cohort:
            self._train(cohort, limit, progress)
        progress.seconds = time.monotonic() - started
        return progress if self._ranks.first else None

    @contextmanager
    def _failing(self, number: int, progress: Progress) -> Iterator[None]:
        """What is raised inside is this trial's own failure, unless it may be that of one rank alone."""
        try:
            yield
        except Exception as error:
            reported = isinstance(error, ReportedError)
            if self._ranks.size > 1 and (isinstance(error, OutOfMemory) or not reported):
                raise
            said = str(error) if reported else f"{type(error).__name__}: {error}"
            progress.failed[number] = said.partition("\n")[0]
            self._seats.pop(number, None)

    def _enter(self, entry: Entry) -> _Slot:
        lot = self._lot(entry.config)
        check_targets(entry.config, lot.ground.nodes)
        if entry.config.train.steps > lot.steps:
            with lot.ground.streams:
                lot.training = lot.ground.training(lot.examples, entry.config.train.steps)
            lot.steps = entry.config.train.steps
        population = lot.ground.population([entry.config])
        seat = _Slot(population, MemberState.new(population.members[0], lot.ground.nodes), lot, 0)
        if entry.state is None:
            with lot.ground.streams:
                lot.ground.warm(population)
        else:
            state = _alone(seat)
            state.restore(entry.state)
            seat.validated = state.validated
        return seat

    def _lot(self, config: Config) -> _SharedData:
        """The lot of a config; one without members makes room for a new one."""
        key = shared_part(config)
        if key not in self._lots:
            used = [id(seat.lot) for seat in self._seats.values()]
            prepared = resolve(config, self._ranks)
            same = [lot.ground for lot in self._lots.values() if lot.ground.config.model == config.model]
            self._lots = {name: lot for name, lot in self._lots.items() if id(lot) in used}
            with explain_out_of_memory(config, prepared.data, self._ranks):
                ground = set_up(prepared, _SILENT, same[0].streams.frozen if same else None)
                with ground.streams:
                    examples = ground.training_examples()
                    training = ground.training(examples, config.train.steps)
                    validation = ground.validation()
            self._lots[key] = _SharedData(ground, examples, training, validation, config.train.steps)
        return self._lots[key]

    def _cohort(self, ready: Sequence[int]) -> list[int]:
        """Those that are furthest behind and can share a pass."""
        if not ready:
            return []
        first = min(ready, key=lambda number: self._seats[number].learner.member.step)
        return [number for number in ready if _together(self._seats[number], self._seats[first])]

    def _train(self, cohort: list[int], limit: int, progress: Progress) -> None:
        lot = self._seats[cohort[0]].lot
        together = override(lot.ground.config, {"population.seeds": len(cohort)}, "sweep.slots")
        with explain_out_of_memory(together, lot.ground.data, self._ranks):
            self._advance_all(cohort, lot, limit, progress)

    def _advance_all(self, cohort: list[int], lot: _SharedData, limit: int, progress: Progress) -> None:
        for _ in range(min(limit, self._until_report(cohort))):
            logged = self._update(cohort, progress)
            if not cohort:
                return
            progress.updates += 1
            learners = [self._seats[number].learner for number in cohort]
            if learners[0].member.step % lot.ground.config.train.log_every == 0:
                columns = {name: values.tolist() for name, values in logged.items()}
                _keep(progress, cohort, metric_rows(learners, learners[0].member.step, columns))
        with lot.ground.streams:
            self._validate([number for number in cohort if self._due(number)], progress)
            self._end([number for number in cohort if self._seats[number].learner.finished], progress)
        for number in cohort:
            if number in self._seats:
                seat = self._seats[number]
                progress.states[number] = _copied(_alone(seat).export(lot.ground.prepared.base))
                progress.steps[number] = seat.learner.member.step

    def _update(self, cohort: list[int], progress: Progress) -> dict[str, Any]:
        """One update of all of the cohort; whose loss is not finite leaves it, and the others do theirs without."""
        lot = self._seats[cohort[0]].lot
        config = lot.ground.config
        while cohort:
            state = self._state(cohort)
            order = train_order(len(lot.examples), config.train.batch_size, state.step, config.task.seed)
            chosen = [lot.examples[index] for index in order]
            try:
                with lot.ground.streams:
                    return update(state, lot.ground.streams, lot.training.references, chosen, lot.ground.passes)
            except DivergedError as error:
                for number in [cohort[index] for index in error.members]:
                    progress.failed[number] = str(error).partition(": ")[2]
                    cohort.remove(number)
                    del self._seats[number]
        return {}

    def _validate(self, due: Sequence[int], progress: Progress) -> None:
        if not due:
            return
        state, lot = self._state(due), self._seats[due[0]].lot
        found = validate(state, lot.ground.streams, lot.validation, lot.ground.passes)
        columns = {f"validation.{name}": [row[name] for row in found] for name in found[0]}
        rows = metric_rows(state.learners, state.step, columns)
        _keep(progress, due, rows)
        for number in due:
            self._seats[number].validated = state.step
            progress.validations[number] = progress.rows[number][-1]

    def _end(self, finished: Sequence[int], progress: Progress) -> None:
        if not finished:
            return
        lot = self._seats[finished[0]].lot
        closing = final_circuits(lot.ground, self._state(finished), (lot.training, lot.validation), _SILENT)
        for index, number in enumerate(finished):
            progress.endings[number] = closing.alone(index)
            progress.steps[number] = self._seats.pop(number).learner.member.step

    def _state(self, numbers: Sequence[int]) -> TrainState:
        """Members as a population."""
        seats = [self._seats[number] for number in numbers]
        population = seats[0].population.part([seat.learner.member for seat in seats])
        return TrainState(population, [seat.learner for seat in seats], seats[0].learner.member.step)

    def _due(self, number: int) -> bool:
        learner = self._seats[number].learner
        every = learner.member.config.train.validate_every
        return learner.member.step % every == 0 or learner.finished

    def _until_report(self, cohort: Sequence[int]) -> int:
        """Updates until the first of a cohort is to be validated or saved, or others are met."""
        learner = self._seats[cohort[0]].learner
        step, train = learner.member.step, learner.member.config.train
        ends = [self._seats[number].learner.member.config.train.steps for number in cohort]
        ends += [seat.learner.member.step for seat in self._seats.values() if seat.learner.member.step > step]
        ends += [(step // every + 1) * every for every in (train.validate_every, train.save_every)]
        return min(ends) - step


def _together(one: _Slot, other: _Slot) -> bool:
    first, second = one.learner.member, other.learner.member
    alike = kind_of_gates(first.config) == kind_of_gates(second.config)
    return one.lot is other.lot and first.step == second.step and alike


def _alone(seat: _Slot) -> TrainState:
    return TrainState(seat.population, [seat.learner], seat.learner.member.step, seat.validated)


def _copied(state: State) -> State:
    """On the host, and no longer what training goes on changing."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
    data = {**state.data, "members": [{**one, "duals": dict(one["duals"])} for one in state.data["members"]]}
    return State(tensors, data, state.base)


def _keep(progress: Progress, numbers: Sequence[int], rows: Sequence[dict[str, Any]]) -> None:
    for number, row in zip(numbers, rows, strict=True):
        progress.rows.setdefault(number, []).append({**row, "member": 0})
