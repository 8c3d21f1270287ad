"""Tables and plot of benchmarks/pareto.py, from rows written by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fronts import at_most, front, levels, needed, of

ROOT = Path(__file__).parents[2]


def row(method, neurons, heads, parameters, kl, seed=0):
    shown = {"file": "m/pairs", "method": method, "seed": seed, "neurons": neurons, "of": 1000, "heads": heads}
    return shown | {"parameters": parameters, "kl": kl, "exact_match": 0.5, "jaccard": None}


ROWS = [
    row("default", 120, 8, 0.2, 0.08) | {"jaccard": [0.5, 0.4]},
    row("default", 120, 10, 0.3, 0.12, seed=1) | {"jaccard": [0.5, 0.4]},
    row("paper", 300, 4, 0.4, 1.0),
    row("paper", 500, 6, 0.5, 0.01),
    row("integrated gradients", 60, 2, 0.05, 0.9),
    row("integrated gradients", 900, 20, 0.9, 0.4),
    row("integrated gradients", 950, 19, 0.95, 0.5),
]


def test_a_front_is_the_best_of_what_is_not_larger():
    mine = of(ROWS, "m/pairs", "integrated gradients")
    assert front(mine, "neurons") == [(60, 0.9), (900, 0.4)]
    assert front(mine, "heads") == [(2, 0.9), (19, 0.5), (20, 0.4)]
    assert at_most(front(mine, "heads"), 19) == 0.5 and at_most(front(mine, "heads"), 1) is None
    (both,) = of(ROWS, "m/pairs", "default")
    assert (both["kl"], both["heads"], both["parameters"]) == pytest.approx((0.1, 9, 0.25)), "seeds are averaged"
    assert levels(ROWS, "heads") == [4, 8, 12, 16] and levels(ROWS, "neurons") == [60, 120, 250, 400]


def test_what_is_needed_is_interpolated_in_the_logarithm_of_kl():
    points = [(300.0, 1.0), (500.0, 0.01)]
    assert needed(points, 0.1, 500) == ("", pytest.approx(400))
    assert needed(points, 0.001, 600) == (">", 600)
    assert needed(points, 2.0, 600) == ("<", 300)


def test_tables_and_plot_are_written_without_measuring(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    command = [sys.executable, "-m", "benchmarks.pareto_table", "--rows", tmp_path / "rows.jsonl", "--output"]
    for folder in ("a", "b"):
        subprocess.run([*command, tmp_path / folder], cwd=ROOT, check=True)
    text = (tmp_path / "a/pareto.md").read_text()
    # `paper` needs 400 neurons, 5 heads and 45% of the parameters for a KL of .1; integrated gradients do not reach it.
    assert (
        "| m/pairs | 120 / 1000 | 9.0 | 25.0% | 0.100 ± 0.028 | 0.500 | 400 (30%) | 5.0 (180%) | 45.0% (56%) | "
        ">950 (<13%) | >20.0 (<45%) | >95.0% (<26%) |"
    ) in text
    tables = {
        title: body
        for title, body in re.findall(r"## KL of every method with the same (\w+)\n(.*?)\n\n(?=## )", text, re.S)
    }
    assert list(tables) == ["neurons", "heads", "parameters"]
    assert "| m/pairs | 120 | 0.100 |  | 0.900 |" in tables["neurons"]
    assert "| m/pairs | 16 | 0.100 | 0.010 | 0.900 |" in tables["heads"]
    assert "| m/pairs | 40% | 0.100 | 1.000 | 0.900 |" in tables["parameters"]
    plots = [(tmp_path / folder / "pareto.svg").read_text() for folder in ("a", "b")]
    assert plots[0] == plots[1]
    for words in ("neurons kept", "heads kept", "parameters kept", "m/pairs", "integrated gradients"):
        assert f">{words}</text>" in plots[0]
