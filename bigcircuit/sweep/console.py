"""What a person sees of a sweep: a live table on a terminal, a line now and then elsewhere."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from bigcircuit.results.pareto import GOOD
from bigcircuit.results.trial_record import TrialRecord

_EVERY, _HEARTBEAT = 1.0, 10.0
_ROWS, _REASONS, _WIDE = 24, 8, 160


class LiveTable:
    """Asks the slots how things stand, in a thread of its own."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.monotonic()

    @contextmanager
    def watching(self, slots: Any) -> Iterator[None]:
        """Show the state of the sweep inside."""
        over, screen = threading.Event(), RichLive(console=self.console, auto_refresh=False, transient=True)
        self._started = time.monotonic()
        thread = threading.Thread(target=self._watch, args=(slots, over, screen), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(5)
            screen.stop()

    def _watch(self, slots: Any, over: threading.Event, screen: RichLive) -> None:
        last, said = time.monotonic() - _HEARTBEAT + 3, 0
        while not over.wait(_EVERY):
            try:
                status = ray.get(slots.status.remote(), timeout=30)
            except ray.exceptions.RayError:
                return
            seconds = time.monotonic() - self._started
            for reason in status["losses"][said:]:
                self.console.print(
                    f"a model worker was lost: {reason}; its trials go on from their last state", markup=False
                )
            said = len(status["losses"])
            if self.console.is_terminal:
                screen.start()
                parts = (
                    trials_table(status["records"]),
                    *map(Text, failures(status["records"])),
                    Text(line(status, seconds)),
                )
                screen.update(Group(*parts), refresh=True)
            elif time.monotonic() - last > _HEARTBEAT:
                last = time.monotonic()
                self.console.print(line(status, seconds), markup=False)


def line(status: Mapping[str, Any], seconds: float) -> str:
    """The sweep in one line."""
    records: Sequence[TrialRecord] = status["records"]
    count = {
        name: sum(record.status == name for record in records) for name in ("finished", "stopped", "failed", "running")
    }
    seated = sum(map(len, status["seated"]))
    parts = [
        f"{count['finished'] + count['stopped'] + count['failed']}/{status['total']} trials",
        *(f"{count[name]} {name}" for name in ("running", "stopped", "failed") if count[name]),
        f"{seated}/{status['slots']} slots",
        f"{status['rate']:.1f} steps/s",
    ]
    if (best := _best(records)) is not None:
        kl, neurons = _point(best)
        parts.append(
            f"best {neurons} neurons with KL {kl:.3g}" if kl <= GOOD else f"lowest KL {kl:.3g} with {neurons} neurons"
        )
    left = remaining(status, seconds)
    return "  ".join([*parts, *([f"{left:.0f} s left"] if left is not None else [])])


def remaining(status: Mapping[str, Any], seconds: float) -> float | None:
    """Seconds until all trials are over at the pace since this start, if none of those to come is stopped early."""
    records: Sequence[TrialRecord] = status["records"]
    done = sum((record.steps or status["steps"]) if record.over else record.step for record in records)
    return (status["total"] * status["steps"] - done) * seconds / status["made"] if status["made"] else None


def _best(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The smallest circuit that is good enough, or, while there is none, the most faithful one."""
    scored = [record for record in records if record.validation and record.status != "failed"]
    good = [record for record in scored if _point(record)[0] <= GOOD]
    if good:
        return min(good, key=lambda record: _point(record)[::-1])
    return min(scored, key=_point, default=None)


def _point(record: TrialRecord) -> tuple[float, int]:
    """KL in nats and neurons, at the last validation."""
    assert record.validation is not None
    return record.validation["validation.kl"], record.validation["validation.kept.total"]


def print_trials(console: Console, records: Sequence[TrialRecord], rows: int = _ROWS) -> None:
    """Print the trials, in a log as wide as need be, and why some have failed."""
    wide = console if console.is_terminal else Console(file=console.file, width=_WIDE, highlight=False)
    wide.print(trials_table(records, rows))
    for one in failures(records):
        console.print(one, markup=False)


def failures(records: Sequence[TrialRecord]) -> list[str]:
    """In a line each, why trials have failed."""
    failed = [record for record in records if record.status == "failed"]
    said = [f"trial {record.number} failed: {record.error}" for record in failed[:_REASONS]]
    return said + ([f"... and {len(failed) - _REASONS} more"] if len(failed) > _REASONS else [])


def trials_table(records: Sequence[TrialRecord], rows: int = _ROWS) -> Table:
    """Trials, those that run first."""
    order = {"running": 0, "failed": 1, "finished": 2, "stopped": 3, "waiting": 4}
    shown = sorted(records, key=lambda record: (order[record.status], record.number))
    keys = sorted({key for record in records for key in record.settings})
    found = Table(box=None, pad_edge=False)
    for heading in ("trial", "status", *keys, "step", "KL", "neurons"):
        found.add_column(
            heading,
            justify="left" if heading == "status" else "right",
            no_wrap=heading not in (*keys, "status"),
            overflow="fold",
        )
    for record in shown[:rows]:
        last = record.validation or {}
        kl, size = last.get("validation.kl"), last.get("validation.kept.total")
        found.add_row(
            str(record.number),
            record.status,
            *(_value(record.settings.get(key)) for key in keys),
            f"{record.step}/{record.steps}" if record.steps else "",
            "" if kl is None else f"{kl:.3f}",
            "" if size is None else str(size),
        )
    if len(shown) > rows:
        found.add_row("...", f"{len(shown) - rows} more")
    return found


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
