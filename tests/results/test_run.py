"""Run folders, evaluations and circuit files as they are read for a page."""

import json
import shutil

import pytest

from bigcircuit.errors import UserError
from bigcircuit.results.result_files import read_result
from bigcircuit.results.run import node_widths, nodes_of_model, open_source


def test_a_run_folder_and_its_circuit_file_describe_the_same_circuit(reported):
    run = open_source(reported.one.path)
    alone = open_source(reported.one.path / "circuit.safetensors")
    assert run.nodes == alone.nodes == {**run.nodes, "head": 32, "total": 1792}
    [member], [file] = run.members, alone.members
    assert (member.name, file.name) == ("0", "one")
    assert {**member.row, **{key: file.row[key] for key in ("kept", "targets", "scores")}} == member.row
    assert {row["step"] for row in member.metrics} == {4, 6} and len(member.examples) == 12
    assert alone.summary is None and not file.metrics and not file.examples
    assert sum(node_widths(member.circuit)["head"]) == nodes_of_model(member.circuit)["head"]


def test_circuits_of_an_evaluation_are_found_where_they_were_moved_to(reported, tmp_path):
    """Files are known by their hash; another file of the same name is not taken."""
    shutil.copytree(reported.one.path, tmp_path / "deep/one")
    content = json.loads((reported.one.path / "evaluation.json").read_text())
    content["circuits"][0]["file"] = "/elsewhere/deep/one/circuit.safetensors"
    (tmp_path / "ev").mkdir()
    (tmp_path / "ev/evaluation.json").write_text(json.dumps(content))
    found = open_source(tmp_path / "ev")
    assert found.members[0].circuit is not None and found.summary is None
    assert found.members[0].row["scores"] == content["circuits"][0]["ablations"]["interchange"]["circuit"]
    shutil.copy(reported.pair_files[0], tmp_path / "deep/one/circuit.safetensors")
    gone = open_source(tmp_path / "ev").members[0]
    assert gone.circuit is None and gone.metadata["model_weights_sha256"] == content["model"]["weights"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("summary.json", "{", r"summary.json: not readable as JSON \(.*\); restore it from a copy or run again"),
        ("evaluation.json", "{", r"evaluation.json: not readable as JSON \(.*\); evaluate or compare again"),
        ("comparison.json", "[]", "comparison.json: not written by `bigcircuit evaluate` or `compare`"),
        ("evaluation.json", '{"format": "other/1"}', "evaluation.json: not written by"),
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(reported, tmp_path, name, text, reason):
    shutil.copytree(reported.one.path, tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(UserError, match=reason):
        open_source(tmp_path / "run")


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(UserError, match=r"evaluation.json: cannot be read \(No such file or directory\); evaluate or"):
        read_result(tmp_path / "evaluation.json")
