"""Terminal output of a sweep: a live table on a terminal, else a line of progress every few seconds."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Group, RenderableType
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from bigcircuit.results.pareto import GOOD_KL
from bigcircuit.results.trial_record import TrialRecord
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.sweep.messages import SweepStatus

_REFRESH_SECONDS, _LINE_SECONDS, _FIRST_LINE_SECONDS = 1.0, 10.0, 3.0
"""Seconds between two states of the live table, between two lines in a log, and before the first line."""
_MAX_ROWS, _MAX_REASONS, _LOG_WIDTH = 24, 8, 160


class LiveTable:
    """Shows the status of the scheduler actor, from a thread of its own."""

    def __init__(self, console: PlainConsole) -> None:
        self.console = console
        self._started = time.monotonic()

    @contextmanager
    def watching(self, scheduler: Any) -> Iterator[None]:
        """Show the sweep as long as the context is open; scheduler: handle of the SchedulerActor."""
        closed, screen = threading.Event(), RichLive(console=self.console, auto_refresh=False, transient=True)
        self._started = time.monotonic()
        thread = threading.Thread(target=self._watch, args=(scheduler, closed, screen), daemon=True)
        thread.start()
        try:
            yield
        finally:
            closed.set()
            thread.join(5)
            screen.stop()

    def _watch(self, scheduler: Any, closed: threading.Event, screen: RichLive) -> None:
        last_line, shown_losses, shown_notes = time.monotonic() - _LINE_SECONDS + _FIRST_LINE_SECONDS, 0, 0
        is_last = False
        while not is_last:
            is_last = closed.wait(_REFRESH_SECONDS)
            try:
                status: SweepStatus = ray.get(scheduler.status.remote(), timeout=30)
            except ray.exceptions.RayError:
                return
            seconds = time.monotonic() - self._started
            for note in status.notes[shown_notes:]:
                self.console.print(note)
            shown_notes = len(status.notes)
            for reason in status.loss_reasons[shown_losses:]:
                self.console.print(f"a model worker was lost: {reason}; its trials go on from their last state")
            shown_losses = len(status.loss_reasons)
            if is_last:
                return
            if self.console.is_terminal:
                screen.start()
                parts: list[RenderableType] = [
                    trials_table(status.records),
                    *map(Text, failure_lines(status.records)),
                    Text(status_line(status, seconds)),
                    *map(Text, phase_lines(status)),
                ]
                screen.update(Group(*parts), refresh=True)
            elif time.monotonic() - last_line > _LINE_SECONDS:
                last_line = time.monotonic()
                for line in (status_line(status, seconds), *phase_lines(status)):
                    self.console.print(line)


def status_line(status: SweepStatus, seconds: float) -> str:
    """Describe the sweep in one line; seconds: time since this start."""
    records = status.records
    count = {
        name: sum(record.status == name for record in records) for name in ("finished", "stopped", "failed", "running")
    }
    assigned = sum(map(len, status.assigned))
    parts = [
        f"{count['finished'] + count['stopped'] + count['failed']}/{status.total} trials",
        *(f"{count[name]} {name}" for name in ("running", "stopped", "failed") if count[name]),
        f"{assigned}/{status.slots} slots",
        f"{status.rate:.1f} steps/s",
    ]
    if (best := _best(records)) is not None:
        kl, neurons = _point(best)
        parts.append(
            f"best {neurons} neurons with validation KL {kl:.3g}"
            if kl <= GOOD_KL
            else f"lowest validation KL {kl:.3g} with {neurons} neurons"
        )
    left = seconds_left(status, seconds)
    return "  ".join([*parts, *([f"{left:.0f} s left"] if left is not None else [])])


def phase_lines(status: SweepStatus) -> list[str]:
    """Describe in a line each what takes long on the workers."""
    return [f"worker {worker}: {line}" for worker, line in status.phases.items()]


def seconds_left(status: SweepStatus, seconds: float) -> float | None:
    """Estimate the seconds until all trials have ended, at the speed since this start and if no more trials are stopped early.

    seconds: time since this start. Returns None before the first update.
    """
    done = sum((record.steps or status.steps) if record.ended else record.step for record in status.records)
    return (status.total * status.steps - done) * seconds / status.updates if status.updates else None


def _best(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the trial with the smallest circuit whose KL is good, or, while there is none, the one with the lowest KL."""
    scored = [record for record in records if record.validation and record.status != "failed"]
    good = [record for record in scored if _point(record)[0] <= GOOD_KL]
    if good:
        return min(good, key=lambda record: _point(record)[::-1])
    return min(scored, key=_point, default=None)


def _point(record: TrialRecord) -> tuple[float, int]:
    """Return KL in nats and neurons at the last validation."""
    assert record.validation is not None
    return record.validation["validation.kl"], record.validation["validation.kept.total"]


def print_trials(
    console: PlainConsole,
    records: Sequence[TrialRecord],
    rows: int = _MAX_ROWS,
    points: Mapping[int, tuple[int, float]] | None = None,
) -> None:
    """Print the table of trials and why some have failed; a log gets a wider table than a terminal. points: see trials_table."""
    wide = console if console.is_terminal else PlainConsole(file=console.file, width=_LOG_WIDTH)
    wide.print(trials_table(records, rows, points))
    for line in failure_lines(records):
        console.print(line)


def failure_lines(records: Sequence[TrialRecord]) -> list[str]:
    """Describe in a line each why trials have failed; of many failed trials, the first ones and a count."""
    failed = [record for record in records if record.status == "failed"]
    lines = [f"trial {record.number} failed: {record.error}" for record in failed[:_MAX_REASONS]]
    return lines + ([f"... and {len(failed) - _MAX_REASONS} more"] if len(failed) > _MAX_REASONS else [])


def trials_table(
    records: Sequence[TrialRecord], rows: int = _MAX_ROWS, points: Mapping[int, tuple[int, float]] | None = None
) -> Table:
    """Make the table of trials, running trials first.

    rows: how many are shown at most. points: neurons and held-out KL, nats, of each finished trial, which are what reports and
    `sweep best` compare; None while the sweep runs: a table of the last validations only.
    """
    order = {"running": 0, "failed": 1, "finished": 2, "stopped": 3, "waiting": 4}
    shown = sorted(records, key=lambda record: (order[record.status], record.number))
    keys = sorted({key for record in records for key in record.settings})
    table = Table(box=None, pad_edge=False)
    scores = ("validation KL", *(("held-out KL",) if points is not None else ()))
    for heading in ("trial", "status", *keys, "step", *scores, "neurons"):
        table.add_column(
            heading,
            justify="left" if heading == "status" else "right",
            no_wrap=heading not in (*keys, "status", *scores),
            overflow="fold",
        )
    for record in shown[:rows]:
        last = record.validation or {}
        size, held_out = (points or {}).get(record.number, (last.get("validation.kept.total"), None))
        values = (last.get("validation.kl"), held_out)[: len(scores)]
        table.add_row(
            str(record.number),
            record.status,
            *(_value(record.settings.get(key)) for key in keys),
            f"{record.step}/{record.steps}" if record.steps else "",
            *("" if kl is None else f"{kl:.3f}" for kl in values),
            "" if size is None else str(size),
        )
    if len(shown) > rows:
        table.add_row("...", f"{len(shown) - rows} more")
    return table


def _value(value: Any) -> str:
    """Format the value of a setting."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
