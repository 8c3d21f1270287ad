"""Progress of phases on a terminal, in a log, and on ranks other than the first; by a clock that the tests set."""

import io
import re
import time

import pytest

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.runtime import progress as module
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.runtime.progress import ProgressDisplay, duration
from tests.helpers.short_runs import FAST, run


class Clock:
    """Stands in for time.monotonic; the thread that looks at the phases by the real clock is off."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("bigcircuit.runtime.progress.time.monotonic", lambda: self.now)
        monkeypatch.setattr(ProgressDisplay, "_watch", lambda _: None)

    def pass_(self, seconds, display=None):
        """Let time pass; display: looks at the phases at the end of every second, as its thread does."""
        for _ in range(int(seconds)):
            self.now += 1.0
            if display is not None and display._watching:
                with display._lock:
                    display._show_line(self.now)
        self.now += seconds - int(seconds)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def in_a_log(enabled=True, **options):
    stream = io.StringIO()
    return ProgressDisplay(enabled, console=PlainConsole(file=stream, width=200, soft_wrap=True), **options), stream


def lines(stream):
    return stream.getvalue().splitlines()


def test_lines_are_ten_seconds_apart_with_the_time_left_by_the_mean_so_far(clock):
    progress, stream = in_a_log()
    with progress.phase("reference logits", 96) as phase:
        for done in range(1, 97):
            clock.now += 1.0 if done <= 48 else 0.5  # twice as fast in the second half
            phase.advance()
    times = [done if done <= 48 else 48 + (done - 48) / 2 for done in range(97)]
    due, expected = 10.0, []
    for done in range(1, 97):
        if times[done] >= due:
            left = times[done] / done * (96 - done)
            expected.append(f"reference logits: {done}/96 passes, {left:.0f} s left")
            due = times[done] + 10
    assert lines(stream) == expected and len(expected) == 7, "72 seconds: the last line is due at 70"


def test_short_phases_print_nothing_and_the_first_line_of_many_comes_after_ten_seconds(clock):
    progress, stream = in_a_log()
    for place in range(6):
        with progress.phase(f"part {place}", 4) as phase:
            for _ in range(4):
                clock.pass_(0.4, progress)
                phase.advance()
    assert lines(stream) == [], "9.6 seconds"
    for place in range(6):
        with progress.phase(f"next {place}", 4) as phase:
            for _ in range(4):
                clock.pass_(0.4, progress)
                phase.advance()
    assert lines(stream) == ["next 0: 3/4 passes, 0 s left"], (
        "the first phase that is a second old, 10.8 s after the start"
    )


def test_a_printed_line_counts_as_a_sign_of_life(clock):
    progress, stream = in_a_log()
    with progress.phase("scoring", 100) as phase:
        for done in range(1, 16):
            clock.now += 1
            if done == 8:
                progress.print_line("a line of the run")
            phase.advance()
    assert lines(stream) == ["a line of the run"]
    with progress.phase("scoring", 100) as phase:
        for _ in range(3):
            clock.now += 1
            phase.advance()
    assert lines(stream)[1:] == ["scoring: 3/100 passes, 97 s left"], "10 s after the printed line"


def test_a_pass_that_takes_minutes_is_shown_by_the_clock(clock):
    progress, stream = in_a_log()
    with progress.phase("scoring", 4) as phase:
        clock.pass_(25, progress)
        phase.advance()
        clock.pass_(25, progress)
    assert lines(stream) == [
        "scoring: 0/4 passes, 10 s so far",
        "scoring: 0/4 passes, 20 s so far",
        "scoring: 1/4 passes, 70 s left",  # 25 s a pass, three passes, 5 s of the next one gone
        "scoring: 1/4 passes, 60 s left",
        "scoring: 1/4 passes, 50 s left",
    ]


def test_an_unknown_total_shows_the_time_so_far(clock):
    progress, stream = in_a_log()
    with progress.phase("loading weights"):
        clock.pass_(150, progress)
    assert lines(stream) == [f"loading weights: {duration(seconds)} so far" for seconds in range(10, 151, 10)]
    assert lines(stream)[-1] == "loading weights: 2 min so far"


def test_bytes_are_shown_in_the_unit_of_the_total(clock):
    progress, stream = in_a_log()
    for total in (16 * 2**30, 100 * 2**20):
        with progress.phase("hashing weights", total, "bytes") as phase:
            clock.now += 10
            phase.advance(total // 4)
    assert lines(stream) == [
        "hashing weights: 4.0/16.0 GiB, 30 s left",
        "hashing weights: 25.0/100.0 MiB, 30 s left",
    ]


def test_a_resumed_phase_tells_the_speed_of_this_process_alone_and_its_first_and_last_advance(clock):
    """40 of 100 updates were made before, two a second are made now."""
    progress, stream = in_a_log()
    with progress.phase("pruning", 100, "steps", done=40, lasting=True) as updates:
        for _ in range(60):
            clock.now += 0.5
            updates.advance(values={"kl": 0.25, "neurons": 12.0})
    found = [re.fullmatch(r"pruning: (\d+)/100 steps, (\d+) s left, 2 steps/s, kl 0\.25, neurons 12", line).groups()
             for line in lines(stream)]  # fmt: skip
    assert [int(step) for step, _ in found] == [41, 61, 81, 100]
    assert all(int(left) == round((100 - int(step)) / 2) for step, left in found)


def test_phases_within_another_one_are_shown_where_they_take_long(clock):
    progress, stream = in_a_log()
    with progress.phase("pruning", 10, "steps", lasting=True) as updates:
        for seconds in (1, 1, 4):
            with progress.phase("update", 8) as passes:
                for _ in range(8):
                    clock.pass_(seconds, progress)
                    passes.advance()
            updates.advance()
        with progress.phase("validation", 5) as passes:
            clock.pass_(12, progress)
    assert lines(stream) == [
        "pruning: 1/10 steps, 72 s left, 0.125 steps/s",  # the first step: at once
        "pruning: 2/10 steps, 62 s left, 0.125 steps/s",  # the update is 2 s old and may be short
        "pruning: 2/10 steps, 52 s left, 0.125 steps/s; update: 2/8 passes, 20 s left",
        "pruning: 2/10 steps, 42 s left, 0.125 steps/s; update: 5/8 passes, 10 s left",
        "pruning: 2/10 steps, 32 s left, 0.125 steps/s; update: 7/8 passes, 0 s left",
        "pruning: 3/10 steps, 102 s left, 0.0625 steps/s; validation: 0/5 passes, 10 s so far",
    ]


def test_the_watchdog_hears_of_every_phase_on_every_rank_and_never_from_a_clock(clock):
    statuses = []
    progress, stream = in_a_log(enabled=False, on_status=statuses.append)
    with progress.phase("loading weights"):
        clock.pass_(30, progress)
    with progress.phase("pruning", 30, "steps") as updates:
        with progress.phase("update", 2) as passes:
            passes.advance()
            clock.pass_(30, progress)
            passes.advance()
        updates.advance(values={"kl": 0.5})
    progress.print_line("done")
    assert stream.getvalue() == "", "other ranks than the first are silent"
    assert statuses == [
        "loading weights",
        "pruning: 0/30 steps",
        "pruning: 0/30 steps; update: 0/2 passes",
        "pruning: 0/30 steps; update: 1/2 passes",
        "pruning: 0/30 steps; update: 2/2 passes",
        "pruning: 1/30 steps, kl 0.5",
        "done",
    ]


def test_lines_can_be_sent_in_place_of_being_printed(clock):
    sent = []
    progress, stream = in_a_log(enabled=False, send=sent.append)
    with progress.phase("loading weights"):
        clock.pass_(12, progress)
    progress.print_line("a line of the run")
    assert sent == ["loading weights: 10 s so far"] and stream.getvalue() == ""


def test_an_error_ends_all_phases_within(clock):
    progress, stream = in_a_log()

    def passes():
        with progress.phase("update", 8) as phase:
            for number in range(8):
                yield number
                phase.advance()

    with pytest.raises(ZeroDivisionError), progress.phase("pruning", 10, "steps"):
        kept = passes()  # a generator that nobody closes
        next(kept)
        raise ZeroDivisionError
    with progress.phase("scoring", 4), progress.phase("reference logits", 3):
        kept.close()
        clock.pass_(11, progress)
    assert lines(stream) == ["scoring: 0/4 passes, 10 s so far; reference logits: 0/3 passes, 10 s so far"]


def test_a_thread_shows_by_the_real_clock_what_is_in_one_long_call(monkeypatch):
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.2)
    monkeypatch.setattr(module, "_SHOWN_AFTER", 0.05)
    progress, stream = in_a_log()
    with progress.phase("loading weights"):
        time.sleep(0.7)
    found = lines(stream)
    assert 1 <= len(found) <= 3 and set(found) <= {"loading weights: 0 s so far", "loading weights: 1 s so far"}
    until = time.monotonic() + 10
    while progress._watching and time.monotonic() < until:
        time.sleep(0.05)
    assert not progress._watching, "the thread ends with the phases"
    with progress.phase("scoring", 3):
        time.sleep(0.7)
    assert lines(stream)[-1].startswith("scoring: 0/3 passes"), "and another one starts"


def on_a_terminal():
    stream = io.StringIO()
    return ProgressDisplay(True, console=PlainConsole(file=stream, force_terminal=True, width=120)), stream


def test_a_lasting_phase_has_a_bar_on_a_terminal_that_stays():
    progress, stream = on_a_terminal()
    with progress.phase("pruning", 3, "steps", lasting=True) as updates:
        for _ in range(3):
            updates.advance(values={"kl": 0.5})
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).splitlines()[-1]
    assert re.search(r"pruning +━{16} 3/3 steps +0 s left +kl 0\.5", last)


def test_another_phase_has_a_bar_on_a_terminal_once_it_takes_long_which_goes(monkeypatch):
    monkeypatch.setattr(module, "_SHOWN_AFTER", 0.1)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.1)
    progress, stream = on_a_terminal()
    with progress.phase("reading", 4):
        pass
    assert stream.getvalue() == "", "too short for a bar"
    with progress.phase("scoring", 4) as outer:
        outer.advance()
        with progress.phase("reference logits", 9) as inner:
            inner.advance(3)
            time.sleep(1.2)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"scoring +[━╸╺ ]+ 1/4 passes .*left", shown)
    assert re.search(r"reference logits +[━╸╺ ]+ 3/9 passes .*left", shown)
    assert stream.getvalue().endswith("\x1b[2K"), "the rows are erased"
    progress.print_line("done")
    assert stream.getvalue().endswith("done\n")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (9000, "2.5 h")],
)
def test_durations_are_shown_in_the_unit_that_suits(seconds, shown):
    assert duration(seconds) == shown


EVERYTHING = {
    "task__keep": "solved",
    "train__both_ways": True,
    "ablation__kind": "optimal",
    "gates__warm_start": "integrated_gradients",
    "gates__warm_start_points": 2,
}
"""Settings of a run with every phase there is."""
PHASES = [
    "reading model config and pairs",
    "hashing weights",
    "counting memory",
    "loading weights",
    "solved pairs of train",
    "solved pairs of test",
    "activation means",
    "integrated gradients",
    "swapped pairs",
    "reference logits",
    "pruning",
    "update",
    "validation",
    "constants at the start",
    "fitting constants",
    "constants at the end",
    "held-out scores",
    "example predictions",
]


def phases_in(output):
    """Names of the phases in the lines of an output, in the order in which they are first there."""
    parts = [part for line in output.splitlines() for part in line.split("; ")]
    return list(dict.fromkeys(part.partition(": ")[0] for part in parts if ": " in part))


def test_every_phase_of_a_run_is_shown_in_order_and_changes_no_bit(tmp_path, monkeypatch, capsys):
    quiet = run(tmp_path / "quiet", **EVERYTHING)
    said = capsys.readouterr().out
    assert [name for name in phases_in(said) if name in PHASES] == ["pruning"]
    assert re.findall(r"pruning: (\d+/\d+) steps", said) == ["1/12", "12/12"], "the first and the last update alone"
    monkeypatch.setattr(module, "_LINE_SECONDS", 1e-3)
    monkeypatch.setattr(module, "_SHOWN_AFTER", 5e-4)
    shown = run(tmp_path / "shown", **EVERYTHING)
    assert [name for name in phases_in(capsys.readouterr().out) if name in PHASES] == PHASES
    assert shown.circuit("0", 1).read_bytes() == quiet.circuit("0", 1).read_bytes()


def test_every_phase_of_an_evaluation_is_shown(tmp_path, monkeypatch, capsys):
    folder = run(tmp_path / "run").path
    monkeypatch.setattr(module, "_LINE_SECONDS", 1e-3)
    monkeypatch.setattr(module, "_SHOWN_AFTER", 5e-4)
    settings = EvaluationSettings(**{**FAST, "ablations": "interchange,mean"})
    evaluate_circuits([str(folder)], settings, Ranks())
    assert set(phases_in(capsys.readouterr().out)) >= {
        "reading circuits and pairs",
        "loading weights",
        "full model on ioi",
        "evaluation",
        "interchange ablation",
        "example predictions",
        "scoring",
        "minimality",
        "activation means",
        "curve of random",
    }


def test_a_phase_costs_microseconds():
    progress, _ = in_a_log(on_status=lambda _: None)
    with progress.phase("pruning", 10, "steps"):
        started = time.perf_counter()
        for _ in range(1000):
            with progress.phase("update", 2) as passes:
                passes.advance()
                passes.advance()
        seconds = (time.perf_counter() - started) / 1000
    assert seconds < 500e-6, f"{seconds * 1e6:.0f} us"
