"""Progress on a terminal, in a log, and on ranks other than the first."""

import io
import re

from rich.console import Console

from bigcircuit.runtime.progress import ProgressDisplay


def test_plain_lines_without_a_terminal_and_a_bar_on_one():
    plain, bar = io.StringIO(), io.StringIO()
    for stream, terminal in ((plain, False), (bar, True)):
        progress = ProgressDisplay(True, console=Console(file=stream, force_terminal=terminal, width=120))
        with progress.bar(steps=3, done=0):
            for step in (1, 2, 3):
                progress.update(step, {"kl": 0.5, "neurons": 12.0})
    lines = plain.getvalue().splitlines()
    assert lines[0].startswith("step 1/3")
    assert re.search(r"step 3/3 .* steps/s .* kl 0\.5 +neurons 12", lines[-1])
    assert "3/3" in bar.getvalue()
    assert "━" in bar.getvalue()


def test_ranks_other_than_the_first_are_silent():
    stream = io.StringIO()
    progress = ProgressDisplay(False, console=Console(file=stream, force_terminal=True))
    with progress.bar(steps=1, done=0):
        progress.update(1, {})
    progress.print_line("hello")
    assert stream.getvalue() == ""
