"""Ranks that die or hang: the job ends in time and says why, and nothing is lost."""

import re
import signal

import pytest

from bigcircuit.distributed.ranks import Ranks
from tests.helpers import interrupted_runs
from tests.helpers.interrupted_runs import Result, run_or_resume


@pytest.mark.parametrize(("launcher", "rank"), [("deepspeed", 0), ("torchrun", 1)])
def test_a_killed_rank_ends_the_job_and_nothing_is_lost(tmp_path, undisturbed, launcher, rank):
    lost = interrupted_runs.lose(tmp_path / "run", rank, step=24, pause=0.02, launcher=launcher)
    assert lost.ending.code != 0
    assert lost.ending.seconds < 30
    assert re.fullmatch(
        rf"bigcircuit: rank {rank} on \S+ died; its last line: pruning: \d+/30 steps.*; "
        "the same command goes on from the last checkpoint",
        lost.text,
    ), lost.ending.text
    assert Result.of(run_or_resume(tmp_path / "run", Ranks())).equals(Result.of(undisturbed))


TIMEOUT = 4.0
"""Seconds; 15 outside of these tests."""


def test_a_rank_that_is_held_ends_the_job(tmp_path):
    slower = ("slow", {"seconds": 0.1, "timeout": TIMEOUT})
    lost = interrupted_runs.lose(tmp_path / "run", rank=0, step=8, number=signal.SIGSTOP, fault=slower)
    assert lost.ending.code != 0
    assert lost.ending.seconds < TIMEOUT + 10
    assert re.search(r"rank 0 on \S+ has not been heard of for 4 s; its last line: pruning: \d+/30 steps", lost.text)


def test_a_rank_that_sleeps_for_ever_ends_the_job(tmp_path):
    with interrupted_runs.Job(tmp_path / "run", fault=("sleep", {"rank": 1, "step": 6, "timeout": TIMEOUT})) as job:
        job.wait_for(6)
        job.signal(0, job.rank(1))  # starts the clock
        lost = job.interruption()
    assert lost.ending.code != 0
    assert lost.ending.seconds < TIMEOUT + 10
    assert re.search(r"rank 1 on \S+ hangs: it has done nothing for 4 s; its last line: pruning: 6/30 steps", lost.text)
    assert lost.step == 6


@pytest.mark.parametrize("ranks", [[0, 1], [1]])
def test_an_error_of_a_rank_is_shown_and_is_no_hang(tmp_path, ranks):
    fault = ("broken", {"ranks": ranks, "step": 6, "timeout": TIMEOUT})
    with interrupted_runs.Job(tmp_path / "run", fault=fault) as job:
        lost = job.interruption()
    assert lost.ending.code != 0 and "hangs" not in lost.ending.text
    assert "Traceback" in lost.ending.text and "RuntimeError: the library is broken" in lost.ending.text
    told = re.search(r"rank 1 on \S+ stopped: RuntimeError: the library is broken; the same command goes on", lost.text)
    assert bool(told) == (ranks == [1])
