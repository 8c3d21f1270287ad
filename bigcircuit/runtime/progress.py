"""Print the progress of a run: a progress bar on a terminal, a plain line every ten seconds elsewhere."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Terminal output of a run: lines, tables and a progress bar.

    enabled: whether this rank prints. on_status: called with every line and step, printed or not, for the watchdog.
    """

    def __init__(
        self, enabled: bool, on_status: Callable[[str], None] | None = None, console: Console | None = None
    ) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._enabled = enabled
        self._on_status = on_status or (lambda _: None)
        self._last_line = 0.0
        self._started = time.monotonic()
        self._steps = 0
        self._progress: Progress | None = None

    def print_line(self, message: str) -> None:
        """Print one line of text, without markup."""
        self._on_status(message)
        if self._enabled:
            self.console.print(message, markup=False)

    def print_table(self, renderable: object) -> None:
        """Print a table or another rich object."""
        if self._enabled:
            self.console.print(renderable)

    def bar(self, steps: int, done: int) -> "ProgressDisplay":
        """Start a progress bar; to be used as a context manager around a loop.

        steps: number of updates in all. done: number of updates made before.
        """
        self._steps, self._done, self._started = steps, done, time.monotonic()
        if self._enabled and self.console.is_terminal:
            self._progress = Progress(
                TextColumn("pruning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"), console=self.console,
            )  # fmt: skip
            self._task = self._progress.add_task("pruning", total=steps, completed=done, values="")
        return self

    def __enter__(self) -> "ProgressDisplay":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Report an update and the few numbers to watch, by name."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._on_status(f"step {step}/{self._steps}  {text}")
        if not self._enabled:
            return
        if self._progress:
            self._progress.update(self._task, completed=step, values=text)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES or step == self._steps:
            self._last_line = time.monotonic()
            rate = (step - self._done) / max(self._last_line - self._started, 1e-9)
            left = (self._steps - step) / max(rate, 1e-9)
            self.print_line(f"step {step}/{self._steps}  {rate:.1f} steps/s  {left:.0f} s left  {text}")
