"""Stop at a safe place: SIGTERM and Ctrl-C record a request, and the run stops once its state can be saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Have SIGTERM raise SystemExit inside, so that what is half written is removed; for work that has no state to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class StopRequest:
    """Request of a signal to stop this process.

    number: the signal's number, or 0 without a request.
    """

    number: int = 0

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Have SIGTERM and the first SIGINT only record a request inside; another SIGINT, and any signal outside, acts as usual.

        SIGTERM may come several times: from a batch system, and once more from the launcher.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python runs signal handlers in the main thread only
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def record(number: int, _: FrameType | None) -> None:
            self.number = number
            signal.signal(signal.SIGINT, before[signal.SIGINT])

        try:
            for number in before:
                signal.signal(number, record)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
