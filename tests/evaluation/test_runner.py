"""`launchers/evaluate.py` on two ranks that hold the weights in pieces."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.results.evaluation import read_result
from tests.evaluation.test_evaluate import FAST
from tests.helpers.short_runs import run

ROOT = Path(__file__).parents[2]


def test_two_ranks_with_weights_in_pieces_find_the_same(tmp_path):
    finished = run(tmp_path / "run").path
    options = {**FAST, "output": str(tmp_path / "one")}
    evaluate_circuits([str(finished)], EvaluationSettings(**options), Ranks())
    words = [word for name, value in FAST.items() for word in (f"--{name}", str(value).strip("[]"))]
    words += ["--output", str(tmp_path / "two"), "--deepspeed", str(ROOT / "configs/deepspeed/zero3.json")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29761"]
    done = subprocess.run(
        [*command, str(ROOT / "launchers/evaluate.py"), str(finished), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
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
