"""Experiment trackers: they receive what metrics.jsonl holds."""

import json
from importlib.util import find_spec

import pytest

from bigcircuit.config.load import load
from bigcircuit.errors import UserError
from bigcircuit.runtime.trackers import check_trackers
from tests.helpers.short_runs import run


def test_tensorboard_receives_what_metrics_hold(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path / "run", tracking__trackers=["tensorboard"])
    events = EventAccumulator(str(folder.path / "tracking/bigcircuit")).Reload()
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    expected = {row["step"]: row["kl"] for row in rows if "kl" in row}
    found = {event.step: event.value for event in events.Scalars("kl")}
    assert found == pytest.approx(expected, rel=1e-5)


def test_tracker_that_is_not_installed():
    if find_spec("trackio"):
        pytest.skip("trackio is installed")
    with pytest.raises(UserError, match="trackio is not installed; pip install trackio, or remove it"):
        check_trackers(load(None, {"tracking.trackers": ["trackio"]}))
