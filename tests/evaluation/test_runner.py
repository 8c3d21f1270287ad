"""`launchers/evaluate.py` on two ranks that hold the weights in pieces."""

import pytest

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.results.evaluation import read_result
from tests.helpers.launch import DEEPSPEED_CONFIGS, ROOT, launch
from tests.helpers.short_runs import FAST, run


def test_two_ranks_with_weights_in_pieces_find_the_same(tmp_path):
    finished = run(tmp_path / "run").path
    options = {**FAST, "output": str(tmp_path / "one")}
    evaluate_circuits([str(finished)], EvaluationSettings(**options), Ranks())
    words = [word for name, value in FAST.items() for word in (f"--{name}", str(value).strip("[]"))]
    words += ["--output", str(tmp_path / "two"), "--deepspeed", str(DEEPSPEED_CONFIGS / "zero3.json")]
    launch(2, str(ROOT / "launchers/evaluate.py"), str(finished), *words, timeout=200)
    one, two = (flat(read_result(tmp_path / name / "evaluation.json")["circuits"]) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == (pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value), key


def flat(value, prefix=""):
    """Nested data as one mapping."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {key: one for name, part in items for key, one in flat(part, f"{prefix}.{name}").items()}
