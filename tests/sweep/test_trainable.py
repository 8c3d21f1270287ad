"""A trial as Tune runs it: requests to the scheduler actor, here one that answers at once."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep import trainable as trainable_module
from bigcircuit.sweep.trainable import TuneTrial


class Scheduler:
    """Handle of an actor whose methods answer at once; remembers the requests."""

    def __init__(self, **answers):
        self.answers, self.requests = answers, []

    def __getattr__(self, name):
        def remote(*arguments):
            self.requests.append((name, *arguments))
            return self.answers.get(name)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def trial(monkeypatch):
    """Make a trial without Tune around it."""
    monkeypatch.setattr(trainable_module, "ray", SimpleNamespace(get=lambda answer: answer))
    monkeypatch.setattr(TuneTrial, "trial_id", "name")

    def make(scheduler, settings):
        made = TuneTrial.__new__(TuneTrial)
        made.setup(settings, scheduler=scheduler)
        return made

    return make


def test_it_is_registered_once_at_its_first_request(trial):
    scheduler = Scheduler(register=7, next_report={"step": 3})
    made = trial(scheduler, {"train.lr": np.float64(0.5)})
    assert scheduler.requests == []
    assert made.step() == {"step": 3} == made.step()
    assert scheduler.requests == [("register", "name", {"train.lr": 0.5}), ("next_report", 7), ("next_report", 7)]


def test_changed_settings_are_registered_again_before_a_state_is_loaded(trial):
    scheduler = Scheduler(register=7)
    made = trial(scheduler, {"train.lr": 0.5})
    made.save_checkpoint("folder")
    assert made.reset_config({"train.lr": 0.6})
    made.load_checkpoint("folder")
    assert scheduler.requests[2:] == [("register", "name", {"train.lr": 0.6}), ("load_checkpoint", 7, "folder")]


def test_the_error_of_a_trial_fails_it_in_tune(trial):
    made = trial(Scheduler(register=7, next_report={"number": 7, "error": "why"}), {})
    with pytest.raises(RuntimeError, match="why"):
        made.step()
