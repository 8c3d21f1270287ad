"""What ends a run for a reason that can be said in one line: shown on the terminal without a traceback."""

from collections.abc import Sequence


class ReportedError(Exception):
    """Base: the message is one line, `exit_code` tells scripts what happened."""

    exit_code = 1
    show: bool | None = None
    """Whether this rank shows it; set where ranks have agreed on who does."""
    everywhere = False
    """Whether all ranks raise it at the same place."""


class UserError(ReportedError, ValueError):
    """A mistake of the user: the message is one line that names the file, row or key and says what to do."""

    exit_code = 2


class DivergedError(ReportedError):
    """The loss became NaN or infinite; raised before the update, so gates on disk and in memory are the last good ones."""

    exit_code = 3
    everywhere = True

    def __init__(self, message: str, members: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.members = members
        """Which of the population."""


class OutOfMemory(ReportedError):
    """The memory of a rank does not suffice."""

    exit_code = 4


class Stopped(ReportedError):
    """A signal asked the run to stop; raised on all ranks at the same place."""

    everywhere = True

    def __init__(self, number: int) -> None:
        super().__init__("stopped; the same command goes on from here")
        self.exit_code = 128 + number
