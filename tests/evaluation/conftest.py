"""Fixtures: one short run and its evaluation."""

import pytest

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.results.result_files import read_result
from tests.helpers.short_runs import FAST, run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a run whose test pairs include templates held out; tests change nothing in it."""
    return run(tmp_path_factory.mktemp("evaluate") / "run", task__split__by="template").path


@pytest.fixture(scope="session")
def result(finished):
    """The content of evaluation.json of this run, under three ablations."""
    options = {**FAST, "ablations": "interchange,zero,mean"}
    evaluate_circuits([str(finished)], EvaluationSettings(**options), Ranks())
    return read_result(finished / "evaluation.json")
