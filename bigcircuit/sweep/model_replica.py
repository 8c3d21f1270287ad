"""Replica: one rank of a model worker, with a copy of the model, or a part of one, and the members in its slots.

Members whose settings and step agree share a pass, and so the corrupted stream, the full model's logits and, under ZeRO-3, the
gathers. The order of the data is a function of a member's own step, so a trial finds what `prune` finds with its config,
whatever other members there are. The members with the fewest updates train first: once they reach the step of others they share
passes.

All ranks of a worker get the same calls and therefore make the same updates.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bigcircuit.config.load import members
from bigcircuit.config.schema import Config
from bigcircuit.data.training_order import TrainingOrder
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import DivergedError, OutOfMemory, ReportedError, UserError
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.gates.population import Population
from bigcircuit.io.checkpoint import SavedState
from bigcircuit.memory.fit import explain_out_of_memory
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.sweep.config import gate_settings, shared_settings
from bigcircuit.sweep.messages import Assignment, Progress
from bigcircuit.train.final_circuits import final_circuits
from bigcircuit.train.fingerprint import check_same_fingerprint
from bigcircuit.train.pair_filters import count_solved
from bigcircuit.train.resolve import resolve
from bigcircuit.train.setup import RunContext, set_up
from bigcircuit.train.state import MemberState, TrainState, metric_rows
from bigcircuit.train.step import update, validate
from bigcircuit.train.targets import count_targets


@dataclass
class _SharedData:
    """Model and examples of all members whose shared settings agree, see `shared_settings`."""

    context: RunContext
    order: TrainingOrder
    training: Targets
    validation: Targets
    steps: int
    """Longest training, in updates, for which `training` holds all targets."""


@dataclass
class _Slot:
    """A slot with its member: the training state of one trial."""

    population: Population
    """Population of this member alone."""
    member_state: MemberState
    shared: _SharedData
    validated: int
    """Step of the last validation."""


class Replica:
    """One rank of a worker: shared data by their settings, and slots by trial number."""

    def __init__(self, ranks: Ranks, on_phase: Callable[[str], None] | None = None) -> None:
        """on_phase: called with a line about what takes long, at most every ten seconds, from another thread."""
        self._ranks = ranks
        self._progress = ProgressDisplay(enabled=False, on_status=ranks.set_status, send=on_phase)
        self._shared: dict[str, _SharedData] = {}
        self._slots: dict[int, _Slot] = {}
        self._notes: list[str] = []
        """Lines about model and pairs that no progress has brought to the scheduler yet."""

    def load(self, config: Config) -> None:
        """Load model and pairs ahead of the first trial. Raises UserError and OutOfMemory."""
        self._shared_data(config)

    def advance(
        self, assignments: Sequence[Assignment], evicted: Sequence[int], ready: Sequence[int], max_updates: int
    ) -> Progress | None:
        """Fill and empty slots, then train the `ready` trials with the fewest updates, together, up to their next report.

        assignments: trials to put in slots; evicted: numbers of trials to remove from theirs; ready: numbers of trials that may
        train. Returns the progress on the first rank, None on others. An error of a single trial fails the trial; raises
        OutOfMemory where several trials do not fit into memory together.
        """
        progress, started = Progress(), time.monotonic()
        for number in evicted:
            self._slots.pop(number, None)
        for assignment in assignments:
            with self._failing(assignment.number, progress):
                self._slots[assignment.number] = self._new_slot(assignment)
        cohort = self._cohort([number for number in ready if number in self._slots])
        if len(cohort) == 1:
            with self._failing(cohort[0], progress):
                self._train(cohort, max_updates, progress)
        elif cohort:
            self._train(cohort, max_updates, progress)
        progress.seconds = time.monotonic() - started
        progress.notes, self._notes = self._notes, []
        return progress if self._ranks.is_first else None

    @contextmanager
    def _failing(self, number: int, progress: Progress) -> Iterator[None]:
        """Record an exception raised inside as failure of the trial; raise it again if it may concern one of several ranks only."""
        try:
            yield
        except Exception as error:
            reported = isinstance(error, ReportedError)
            if self._ranks.size > 1 and (isinstance(error, OutOfMemory) or not reported):
                raise
            message = str(error) if reported else f"{type(error).__name__}: {error}"
            progress.failures[number] = message.partition("\n")[0]
            self._slots.pop(number, None)

    def _new_slot(self, assignment: Assignment) -> _Slot:
        """Set up the member of a trial, new or resumed. Raises UserError."""
        shared = self._shared_data(assignment.config)
        [config] = count_targets(members(assignment.config), shared.context.nodes)
        if config.train.steps > shared.steps:
            with shared.context.streams:
                shared.training = shared.context.training_targets(shared.order, config.train.steps)
            shared.steps = config.train.steps
        population = shared.context.population([config])
        slot = _Slot(population, MemberState.new(population.members[0], shared.context.nodes), shared, validated=0)
        if assignment.state is None:
            with shared.context.streams:
                shared.context.warm_start(population)
        else:
            self._check_same_files(assignment.number, assignment.state, shared.context)
            state = _train_state(slot)
            state.restore(assignment.state)
            slot.validated = state.validated
        return slot

    def _check_same_files(self, number: int, state: SavedState, context: RunContext) -> None:
        """Raises UserError on all ranks if a trial's checkpoint was made with other files than there are now.

        Only the first rank of a host knows the hashes of the model.
        """
        found: UserError | None = None
        try:
            check_same_fingerprint(f"trial {number}", state.base, context.run.fingerprint)
        except UserError as error:
            found = error
        if self._ranks.maximum(int(found is not None)):
            raise found or UserError(f"trial {number}: its checkpoint was made with other files than another host has")

    def _shared_data(self, config: Config) -> _SharedData:
        """Return the shared data of a config; loading new data drops those that no slot uses. Raises UserError and OutOfMemory."""
        key = shared_settings(config)
        if key not in self._shared:
            used = [id(slot.shared) for slot in self._slots.values()]
            run = resolve(config, self._ranks, self._progress)
            same_model = [one.context for one in self._shared.values() if one.context.config.model == config.model]
            self._shared = {name: one for name, one in self._shared.items() if id(one) in used}
            with explain_out_of_memory(run, self._ranks):
                context = set_up(run, same_model[0].streams.frozen if same_model else None)
                with context.streams:
                    order = context.training_order()
                    training = context.training_targets(order, config.train.steps)
                    validation = context.validation_targets()
            if not validation.examples[0].is_window:
                self._notes += count_solved([validation, training], context.micro_batches).lines()
            self._shared[key] = _SharedData(context, order, training, validation, config.train.steps)
        return self._shared[key]

    def _cohort(self, ready: Sequence[int]) -> list[int]:
        """Return the trials that train next: those with the fewest updates that can share a pass."""
        if not ready:
            return []
        first = min(ready, key=lambda number: self._slots[number].member_state.member.step)
        return [number for number in ready if _can_share_pass(self._slots[number], self._slots[first])]

    def _train(self, cohort: list[int], max_updates: int, progress: Progress) -> None:
        """Train a cohort, with advice for the user where memory runs out. Raises OutOfMemory."""
        shared = self._slots[cohort[0]].shared
        with explain_out_of_memory(shared.context.run, self._ranks, population=len(cohort)):
            self._make_updates(cohort, shared, max_updates, progress)

    def _make_updates(self, cohort: list[int], shared: _SharedData, max_updates: int, progress: Progress) -> None:
        """Update a cohort up to its next report, then validate or finish the members for which that is due."""
        for _ in range(min(max_updates, self._updates_to_report(cohort))):
            logged = self._update(cohort, progress)
            if not cohort:
                return
            progress.updates += 1
            member_states = [self._slots[number].member_state for number in cohort]
            if member_states[0].member.step % shared.context.config.train.log_every == 0:
                columns = {name: values.tolist() for name, values in logged.items()}
                _add_rows(progress, cohort, metric_rows(member_states, member_states[0].member.step, columns))
        with shared.context.streams:
            self._validate([number for number in cohort if self._validation_due(number)], progress)
            self._finish([number for number in cohort if self._slots[number].member_state.finished], progress)
        for number in cohort:
            if number in self._slots:
                slot = self._slots[number]
                progress.states[number] = _host_copy(_train_state(slot).export(shared.context.run.fingerprint))
                progress.steps[number] = slot.member_state.member.step

    def _update(self, cohort: list[int], progress: Progress) -> dict[str, Any]:
        """Make one update of the whole cohort. Returns what to log, by name, float32 [P]; empty where no member is left.

        A member whose loss is not finite fails and is removed from the cohort, and the others are updated without it.
        """
        shared = self._slots[cohort[0]].shared
        while cohort:
            state = self._joint_state(cohort)
            chosen = shared.order.batch(state.step)
            try:
                with shared.context.streams:
                    training, micro_batches = shared.training, shared.context.micro_batches
                    return update(
                        state, shared.context.streams, training.references, chosen, micro_batches, training.store
                    )
            except DivergedError as error:
                for number in [cohort[index] for index in error.members]:
                    progress.failures[number] = str(error).partition(": ")[2]
                    cohort.remove(number)
                    del self._slots[number]
        return {}

    def _validate(self, due: Sequence[int], progress: Progress) -> None:
        """Validate members together and record the rows."""
        if not due:
            return
        state, shared = self._joint_state(due), self._slots[due[0]].shared
        scores = validate(state, shared.context.streams, shared.validation, shared.context.micro_batches)
        columns = {f"validation.{name}": [row[name] for row in scores] for name in scores[0]}
        rows = metric_rows(state.member_states, state.step, columns)
        _add_rows(progress, due, rows)
        for number in due:
            self._slots[number].validated = state.step
            progress.validations[number] = progress.rows[number][-1]

    def _finish(self, finished: Sequence[int], progress: Progress) -> None:
        """Make the final circuits of members that have made all updates, and empty their slots."""
        if not finished:
            return
        shared = self._slots[finished[0]].shared
        targets = (shared.training, shared.validation)
        result = final_circuits(shared.context, self._joint_state(finished), targets)
        for index, number in enumerate(finished):
            progress.results[number] = result.alone(index)
            progress.steps[number] = self._slots.pop(number).member_state.member.step

    def _joint_state(self, numbers: Sequence[int]) -> TrainState:
        """Return the training state of members as one population."""
        slots = [self._slots[number] for number in numbers]
        population = slots[0].population.part([slot.member_state.member for slot in slots])
        return TrainState(population, [slot.member_state for slot in slots], slots[0].member_state.member.step)

    def _validation_due(self, number: int) -> bool:
        """Return whether a member is to be validated at its step."""
        member_state = self._slots[number].member_state
        every = member_state.member.config.train.validate_every
        return member_state.member.step % every == 0 or member_state.finished

    def _updates_to_report(self, cohort: Sequence[int]) -> int:
        """Return the updates until a member of the cohort is validated, saved or finished, or reaches the step of other members."""
        member_state = self._slots[cohort[0]].member_state
        step, train = member_state.member.step, member_state.member.config.train
        ends = [self._slots[number].member_state.member.config.train.steps for number in cohort]
        ends += [slot.member_state.member.step for slot in self._slots.values() if slot.member_state.member.step > step]
        ends += [(step // every + 1) * every for every in (train.validate_every, train.save_every)]
        return min(ends) - step


def _can_share_pass(one: _Slot, other: _Slot) -> bool:
    """Return whether two members can train in the same pass."""
    first, second = one.member_state.member, other.member_state.member
    same_gates = gate_settings(first.config) == gate_settings(second.config)
    return one.shared is other.shared and first.step == second.step and same_gates


def _train_state(slot: _Slot) -> TrainState:
    """Return the training state of one member as a population of its own."""
    return TrainState(slot.population, [slot.member_state], slot.member_state.member.step, slot.validated)


def _host_copy(state: SavedState) -> SavedState:
    """Copy a state to the host, so that further updates do not change it."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
    data = {**state.data, "members": [{**one, "duals": dict(one["duals"])} for one in state.data["members"]]}
    return SavedState(tensors, data, state.base)


def _add_rows(progress: Progress, numbers: Sequence[int], rows: Sequence[dict[str, Any]]) -> None:
    """Add a row of the metrics to each trial; every trial is member 0 of its own run folder."""
    for number, row in zip(numbers, rows, strict=True):
        progress.rows.setdefault(number, []).append({**row, "member": 0})
