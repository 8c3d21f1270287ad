"""What a person sees while a run goes on: a rich progress bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_HEARTBEAT_SECONDS = 10.0


class ProgressDisplay:
    """Speaks for rank 0 and is silent on the others, which only note what they would say."""

    def __init__(self, speak: bool, note: Callable[[str], None] | None = None, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._speak = speak
        self._note = note or (lambda _: None)
        self._last = 0.0
        self._started = time.monotonic()
        self._steps = 0
        self._progress: Progress | None = None

    def say(self, message: str) -> None:
        """One line of text."""
        self._note(message)
        if self._speak:
            self.console.print(message, markup=False)

    def show(self, renderable: object) -> None:
        """A table or another rich object."""
        if self._speak:
            self.console.print(renderable)

    def training(self, steps: int, done: int) -> "ProgressDisplay":
        """Use as a context manager around the loop; `done` of `steps` updates were made before."""
        self._steps, self._first, self._started = steps, done, time.monotonic()
        if self._speak and self.console.is_terminal:
            self._progress = Progress(
                TextColumn("pruning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"), console=self.console,
            )  # fmt: skip
            self._task = self._progress.add_task("pruning", total=steps, completed=done, note="")
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

    def step(self, step: int, note: Mapping[str, float]) -> None:
        """Report an update; `note` holds the few numbers worth watching."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in note.items())
        self._note(f"step {step}/{self._steps}  {text}")
        if not self._speak:
            return
        if self._progress:
            self._progress.update(self._task, completed=step, note=text)
        elif time.monotonic() - self._last > _HEARTBEAT_SECONDS or step == self._steps:
            self._last = time.monotonic()
            rate = (step - self._first) / max(self._last - self._started, 1e-9)
            left = (self._steps - step) / max(rate, 1e-9)
            self.say(f"step {step}/{self._steps}  {rate:.1f} steps/s  {left:.0f} s left  {text}")
