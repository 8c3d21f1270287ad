"""Random labels as a control, and runs from before there were any."""

import json

import pytest

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.prune import prune
from tests.helpers.short_runs import QUICK, run


def test_random_labels_change_what_is_trained_and_not_what_is_reported(tmp_path):
    own, random = (run(tmp_path / labels, task__labels=labels).path for labels in ("own", "random"))
    full = [json.loads((folder / "summary.json").read_text())["full"] for folder in (own, random)]
    assert full[0] == full[1]
    first = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["kl"] for folder in (own, random)]
    assert first[0] != first[1]
    with pytest.raises(ValueError, match="set train.hinge to 0"):
        load(None, {"task.labels": "random", "train.hinge": 1.0})


def test_a_run_of_an_older_version_without_new_settings_goes_on(tmp_path):
    folder = run(tmp_path / "run")
    content = json.loads(folder.config.read_text())
    del content["config"]["task"]["labels"], content["config"]["task"]["split"]["by"]
    folder.config.write_text(json.dumps(content))
    assert prune(load(None, {**QUICK, "output": str(folder.path)}), Ranks()).path == folder.path
