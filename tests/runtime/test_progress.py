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


def test_lines_are_ten_seconds_apart_and_tell_the_speed_of_this_process_alone(monkeypatch):
    """A resumed run: 40 of 100 updates were made before, two a second are made now."""
    now, stream, statuses = [1000.0], io.StringIO(), []
    monkeypatch.setattr("bigcircuit.runtime.progress.time.monotonic", lambda: now[0])
    progress = ProgressDisplay(True, statuses.append, Console(file=stream, force_terminal=False, width=120))
    with progress.bar(steps=100, done=40):
        for step in range(41, 101):
            now[0] += 0.5
            progress.update(step, {"kl": 0.25})
    steps = [re.fullmatch(r"step (\d+)/100  (\S+) steps/s  (\d+) s left  kl 0\.25", line).groups()
             for line in stream.getvalue().splitlines()]  # fmt: skip
    assert steps[0] == ("41", "2.0", "30"), "the first line comes at once"
    assert [int(step) for step, *_ in steps] == [41, 62, 83, 100]
    assert all(rate == "2.0" and int(left) == round((100 - int(step)) / 2) for step, rate, left in steps)
    assert [line for line in statuses if "steps/s" not in line] == [f"step {n}/100  kl 0.25" for n in range(41, 101)]


def test_markup_in_a_line_is_text():
    stream = io.StringIO()
    ProgressDisplay(True, console=Console(file=stream, width=80)).print_line("runs/[bold]x[/bold] is [red]new")
    assert stream.getvalue() == "runs/[bold]x[/bold] is [red]new\n"
