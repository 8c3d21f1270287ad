"""evaluation.json and comparison.json of others: what is not of their schema is named, with its place."""

import json

import pytest

from bigcircuit.errors import UserError
from bigcircuit.evaluation.compare import compare_circuits
from bigcircuit.evaluation.config import ComparisonSettings
from bigcircuit.results.result_files import read_result
from bigcircuit.runtime.console import PlainConsole


@pytest.fixture(scope="module")
def compared(reported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    compare_circuits(
        [str(path) for path in reported.pair_files], ComparisonSettings(output=str(folder)), PlainConsole()
    )
    return folder / "comparison.json"


def changed(file, place, value, target):
    """Write a copy of a JSON file with another value at a place; None removes what is there."""
    content = json.loads(file.read_text())
    inside, (*before, last) = content, place
    for key in before:
        inside = inside[key]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    target.write_text(json.dumps(content))
    return target


FIRST = ("circuits", 0)
UNDER = (*FIRST, "ablations", "interchange")


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (
            (*UNDER, "circuit", "kl", "mean"),
            "0.1",
            "circuits.0.ablations.interchange.circuit.kl.mean.*: input should be",
        ),
        ((*UNDER, "minimality"), [], "circuits.0.ablations.interchange.minimality: input should be an object"),
        ((*UNDER, "partial", 0, "draws"), 1.5, "circuits.0.ablations.interchange.partial.0.draws: "),
        ((*FIRST, "kept"), {}, "counts no nodes of "),
        ((*FIRST, "task"), "other", "names the task 'other', which is not known here"),
        ((*FIRST, "ablations"), {"../x": {}}, "circuits.0.ablations.../x.means: field required"),
        (("curves",), {"../x": []}, "names the ablation '../x', which is not known here"),
        (("circuits",), [], "has no circuits"),
        ((*FIRST, "examples", 0, "full"), [3], "circuits.0.examples: 0.full.0: "),
        (
            ("inside",),
            {"0": {"tokens": [], "neurons": [], "heads": [{"name": "L0H1"}]}},
            "inside: 0.heads.0.weights: field",
        ),
        (("nodes", "total"), None, "counts no nodes of total"),
        (("tasks",), None, "tasks: field required"),
    ],
)
def test_a_damaged_evaluation_is_refused_with_the_place(reported, tmp_path, place, value, problem):
    file = changed(reported.one.path / "evaluation.json", place, value, tmp_path / "evaluation.json")
    with pytest.raises(UserError, match=f"evaluation.json: {problem}"):
        read_result(file)


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("stability", "head"), None, "has no overlap of head"),
        (("overlap", "total", "sizes"), [1], "has 2 circuits, and overlaps of 1"),
        (("stability", "head", "matrix", 0), [1.0, 0.5, 0.5], "has 2 circuits, and overlaps of 3"),
        (("frequency", "../x"), [[1]], "names the granularity '../x'"),
        (("overlap", "head", "jaccard"), "x", "overlap.head.jaccard"),
    ],
)
def test_a_damaged_comparison_is_refused_with_the_place(compared, tmp_path, place, value, problem):
    with pytest.raises(UserError, match=f"comparison.json: {problem}"):
        read_result(changed(compared, place, value, tmp_path / "comparison.json"))


def test_a_file_of_an_earlier_version_is_read(reported, tmp_path):
    content = json.loads((reported.one.path / "evaluation.json").read_text())
    for name in ("checks", "inside"):
        del content[name]
    points = [*content["circuits"][0]["ablations"]["interchange"]["partial"]]
    points += [point for curves in content["curves"].values() for curve in curves for point in curve["points"]]
    assert points
    for point in points:
        del point["kl_low"], point["kl_high"]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    assert read_result(tmp_path / "evaluation.json")["format"] == content["format"]


def test_scores_that_are_not_finite_are_null_and_are_read(reported, tmp_path):
    place = (*UNDER, "circuit", "kl")
    score = json.loads((reported.one.path / "evaluation.json").read_text())["circuits"][0]["ablations"]["interchange"]
    value = {**score["circuit"]["kl"], "mean": float("nan"), "low": float("inf")}
    file = changed(reported.one.path / "evaluation.json", place, value, tmp_path / "evaluation.json")
    text = file.read_text().replace("NaN", "null").replace("Infinity", "null")
    file.write_text(text)
    found = read_result(file)["circuits"][0]["ablations"]["interchange"]["circuit"]["kl"]
    assert found["mean"] is None and found["high"] == value["high"]
