"""Errors that end a run for a reason of one line: printed on the terminal without a traceback."""

import re
from collections.abc import Sequence

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but tab and newline, which could move the cursor or change the terminal, and lone surrogates."""
_LONGEST = 4000
"""Characters of a message: the rest of what a file holds explains nothing."""


class ReportedError(Exception):
    """Base of these errors: the message is one line, `exit_code` tells scripts what happened."""

    exit_code = 1
    show: bool | None = None
    """Whether this rank prints the error; None where only one process runs."""
    on_all_ranks = False
    """Whether all ranks raise the error at the same place."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= _LONGEST else f"{message[: _LONGEST - 4]} ...")


class UserError(ReportedError, ValueError):
    """Mistake of the user: the message is one line that names the file, row or key and says what to do."""

    exit_code = 2


class DivergedError(ReportedError):
    """The loss is NaN or infinite. Raised before the update, so gates on disk and in memory are the last good ones."""

    exit_code = 3
    on_all_ranks = True

    def __init__(self, message: str, members: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.members = members
        """Indices of the diverged members in the population."""


class OutOfMemory(ReportedError):
    """The memory of a rank does not suffice."""

    exit_code = 4


class Stopped(ReportedError):
    """A signal asked the run to stop. Raised on all ranks at the same place."""

    on_all_ranks = True

    def __init__(self, number: int) -> None:
        super().__init__("stopped; the same command goes on from here")
        self.exit_code = 128 + number


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, or the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def printable(text: str) -> str:
    r"""Replace the characters of text that no terminal may get by escapes such as `\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
