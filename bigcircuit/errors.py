"""What a user can cause: one line on the terminal, exit code 2, no traceback."""


class UserError(ValueError):
    """A mistake of the user: the message is one line that names the file, row or key and says what to do."""

    exit_code = 2


class DivergedError(RuntimeError):
    """The loss became NaN or infinite; raised before the update, so gates on disk and in memory are the last good ones."""

    exit_code = 3
