"""Show the progress of a run: phases, each with what is done of it and the time left, inside each other.

On a terminal and in a notebook every phase that lasts is a bar; elsewhere a line is printed at most every ten seconds, the first
after ten seconds, so that short runs print none. Rank 0 prints; every rank tells its watchdog the phase it is in.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from bigcircuit.runtime.cell_output import CellOutput
from bigcircuit.runtime.console import PlainConsole

_LINE_SECONDS = 10.0
"""Least time between two lines; phases inside another one are shown where they take longer than this."""
_SHOWN_AFTER = 1.0
"""Age, in seconds, from which a phase is shown."""
_POLL_SECONDS, _BAR_WIDTH = 0.5, 16
"""Seconds between two looks at the phases where bars are drawn, which draw them again; width of a bar."""


def duration(seconds: float) -> str:
    """Format seconds as s, min or h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Phase:
    """A part of a run that takes a while: its name, and how much of it is done."""

    def __init__(
        self, name: str, total: int | None, unit: str, done: int, lasting: bool, moved: Callable[["Phase"], None]
    ) -> None:
        """See ProgressDisplay.phase. moved: called after every advance."""
        self.name, self.total, self.unit, self.done, self.lasting = name, total, unit, done, lasting
        self.started = self.last = time.monotonic()
        self.values: Mapping[str, float] = {}
        self._first, self._moved, self._lock = done, moved, threading.Lock()

    def advance(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Count what has been done since the last call; from any thread. values: numbers to show beside, by name."""
        with self._lock:
            self.done += count
            self.last = time.monotonic()
            self.values = values or self.values
        self._moved(self)

    @property
    def at_first_or_last(self) -> bool:
        """Whether the last advance was the first one, or has completed the phase."""
        return self.done in (self._first + 1, self.total)

    def seconds_left(self, now: float) -> float | None:
        """Estimate the time left from the mean so far, not below 0; None where the total or the speed is not known."""
        if self.total is None or self.done == self._first:
            return None
        mean = (self.last - self.started) / (self.done - self._first)
        return max(0.0, mean * (self.total - self.done) - (now - self.last))

    def is_long(self, now: float) -> bool:
        """Return whether the phase takes longer than the time between two lines, as far as this can be told."""
        return now - self.started + (self.seconds_left(now) or 0.0) >= _LINE_SECONDS

    def counted(self) -> str:
        """Describe how much is done: `12/96 passes`, `3.2/16.1 GiB`; nothing where the total is not known."""
        if self.total is None:
            return ""
        if self.unit != "bytes":
            return f"{self.done}/{self.total} {self.unit}"
        size, name = (2**30, "GiB") if self.total >= 2**30 else (2**20, "MiB")
        return f"{self.done / size:.1f}/{self.total / size:.1f} {name}"

    def timing(self, now: float) -> str:
        """Describe the time: what is left, or the time so far where that is not known."""
        left = self.seconds_left(now)
        return f"{duration(now - self.started)} so far" if left is None else f"{duration(left)} left"

    def speed(self) -> list[str]:
        """Describe the speed of a lasting phase; empty for others."""
        seconds = self.last - self.started
        return [f"{(self.done - self._first) / seconds:.3g} {self.unit}/s"] if self.lasting and seconds > 0 else []

    def shown_values(self) -> list[str]:
        """List the values with their names."""
        return [f"{name} {value:.4g}" for name, value in self.values.items()]

    def status(self) -> str:
        """Describe the phase without times, for the watchdog: `pruning: 12/300 steps, kl 0.25`."""
        return f"{self.name}: {', '.join(filter(None, [self.counted(), *self.shown_values()]))}".removesuffix(": ")

    def line(self, now: float) -> str:
        """Describe the phase: `reference logits: 12/96 passes, 41 s left`."""
        parts = [self.counted(), self.timing(now), *self.speed(), *self.shown_values()]
        return f"{self.name}: {', '.join(filter(None, parts))}"


class ProgressDisplay:
    """Output of a run: lines, tables and the phases it is in.

    enabled: whether this rank prints. on_status: called with every line and whenever a phase begins or advances, printed or not,
    for the watchdog. send: called with the lines of phases instead of printing them, for a process whose output nobody sees.
    """

    def __init__(
        self,
        enabled: bool,
        on_status: Callable[[str], None] | None = None,
        console: PlainConsole | None = None,
        send: Callable[[str], None] | None = None,
    ) -> None:
        self.console = console or PlainConsole(soft_wrap=True)
        self._enabled = enabled
        self._on_status = on_status
        self._send = send
        self._has_bars = enabled and self.console.can_redraw
        self._phases: list[Phase] = []
        self._last_line = time.monotonic()
        # Guards the two below, and phases that end; re-entrant, because collecting garbage may end one. Nothing that holds a lock
        # of rich waits for it.
        self._lock = threading.RLock()
        self._live: Live | CellOutput | None = None
        self._watching = False

    def print_line(self, message: str) -> None:
        """Print one line of text."""
        if self._on_status:
            self._on_status(message)
        if self._enabled:
            self._last_line = time.monotonic()
            self.console.print(message)

    def print_table(self, renderable: object) -> None:
        """Print a table or another rich object."""
        if self._enabled:
            self.console.print(renderable)

    @contextmanager
    def phase(
        self, name: str, total: int | None = None, unit: str = "passes", *, done: int = 0, lasting: bool = False
    ) -> Iterator[Phase]:
        """Show that the run is in a phase, possibly within another one, until the context is left. From one thread.

        total: how much there is to do, in `unit`; `bytes` are shown as GiB; None if it is not known. done: how much of it was done
        before. lasting: the phase has a bar from its start on that stays, or lines for the first and the last advance as well.
        """
        phase = Phase(name, total, unit, done, lasting, self._moved)
        place = len(self._phases)
        self._open(phase)
        try:
            yield phase
        finally:
            self._close(place, phase)

    def _open(self, phase: Phase) -> None:
        self._phases.append(phase)
        self._set_status()
        if not (self._enabled or self._send):
            return
        with self._lock:
            if phase.lasting and self._has_bars:
                self._start_bars()
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="progress", daemon=True).start()

    def _close(self, place: int, phase: Phase) -> None:
        """Leave a phase, and those within it that an error has ended; a generator may leave one that is gone already."""
        with self._lock:
            if self._phases[place : place + 1] != [phase]:
                return
            if place == 0 and self._live is not None:
                self._live.stop()
                self._live = None
            del self._phases[place:]

    def _moved(self, phase: Phase) -> None:
        self._set_status()
        if not (self._enabled or self._send) or self._has_bars:
            return
        at_once = phase.lasting and phase.at_first_or_last
        if at_once or phase.last - self._last_line >= _LINE_SECONDS:
            with self._lock:
                self._show_line(phase.last, at_once)

    def _set_status(self) -> None:
        """Tell the watchdog the phase. Only where work is done: a thread that does so by the clock would hide a hang."""
        if self._on_status and self._phases:
            self._on_status("; ".join([phase.status() for phase in self._phases]))

    def _shown(self, now: float) -> list[Phase]:
        """List the phases to show: the outermost if it is not young, and those within that take long."""
        phases = list(self._phases)
        if not phases or not phases[0].lasting and now - phases[0].started < _SHOWN_AFTER:
            return []
        return [p for p in phases if p is phases[0] or (now - p.started >= _SHOWN_AFTER and p.is_long(now))]

    def _show_line(self, now: float, at_once: bool = False) -> None:
        """Print or send the line of all phases that are shown, if it is due. Under the lock."""
        shown = self._shown(now)
        if not shown or not at_once and now - self._last_line < _LINE_SECONDS:
            return
        self._last_line = now
        line = "; ".join(phase.line(now) for phase in shown)
        if self._send:
            self._send(line)
        else:
            self.console.print(line)

    def _watch(self) -> None:
        """Show the phases by the clock, in a thread that ends once there is none: a single pass may take minutes."""
        while True:
            with self._lock:
                if not self._phases:
                    self._watching = False
                    return
                now = time.monotonic()
                if not self._has_bars:
                    self._show_line(now)
                    seconds = max(self._last_line + _LINE_SECONDS - now, _SHOWN_AFTER / 10)
                else:
                    seconds = _POLL_SECONDS
                    if self._live is not None:
                        self._live.refresh()
                    elif self._shown(now):
                        self._start_bars()
            time.sleep(seconds)

    def _start_bars(self) -> None:
        """Start to draw the phases on the terminal or in the cell; those of a lasting one stay there. Under the lock."""
        if self._live is None and self._phases:
            transient = not self._phases[0].lasting
            if self.console.is_jupyter:
                self._live = CellOutput(self._draw, transient=transient)
            else:
                self._live = Live(
                    console=self.console, get_renderable=self._draw, auto_refresh=False, transient=transient
                )
            self._live.start()

    def _draw(self) -> Table:
        """Lay out a row for every phase that is shown. Called in any thread."""
        now, table = time.monotonic(), Table.grid(padding=(0, 1))
        for _ in range(5):
            table.add_column(no_wrap=True)
        for phase in self._shown(now):
            bar = ProgressBar(phase.total, phase.done, width=_BAR_WIDTH)
            table.add_row(phase.name, bar, phase.counted(), phase.timing(now), ", ".join(phase.shown_values()))
        return table
