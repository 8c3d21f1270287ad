"""SIGTERM as a request to stop."""

import pytest

from bigcircuit.distributed.ranks import Ranks
from tests.helpers import interrupted_runs
from tests.helpers.interrupted_runs import Result, run_or_resume


@pytest.mark.parametrize(("launcher", "everybody", "times"), [("torchrun", False, 1), ("deepspeed", True, 2)])
def test_sigterm_saves_the_state_within_five_seconds(tmp_path, undisturbed, launcher, everybody, times):
    stopped = interrupted_runs.terminate(tmp_path / "run", 9, everybody, times, launcher=launcher)
    assert stopped.ending.code != 0
    assert stopped.ending.seconds < 10, "2 to 3 s on an idle machine, see benchmarks/reliability.md"
    assert stopped.text == "bigcircuit: stopped; the same command goes on from here"
    assert f"stopped at step {stopped.step}, which is saved" in stopped.ending.text
    assert stopped.saved == stopped.step
    assert Result.of(run_or_resume(tmp_path / "run", Ranks())).equals(Result.of(undisturbed))
