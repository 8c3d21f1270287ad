"""Stop at a safe place: SIGTERM and Ctrl-C ask, the run answers once its state can be saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether a signal has asked this process to stop: its number, or 0."""

    number: int = 0

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside, the first SIGTERM or SIGINT only asks; a second one, and any outside, acts as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python hands signals to the main thread alone
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def ask(number: int, _: FrameType | None) -> None:
            self.number = number
            signal.signal(number, before[signal.Signals(number)])

        try:
            for number in before:
                signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
