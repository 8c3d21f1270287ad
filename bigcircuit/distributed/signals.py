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
        """Inside, SIGTERM and the first SIGINT only ask; another SIGINT, and any signal outside, acts as usual.

        SIGTERM may come several times: from a batch system, and once more from the launcher.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python hands signals to the main thread alone
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def ask(number: int, _: FrameType | None) -> None:
            self.number = number
            signal.signal(signal.SIGINT, before[signal.SIGINT])

        try:
            for number in before:
                signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
