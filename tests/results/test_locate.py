"""Circuit files of runs, runs of circuit files, and short names."""

from pathlib import Path

import pytest

from bigcircuit.errors import UserError
from bigcircuit.results.locate import circuit_files, name_of, run_of, unique


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run/circuits").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    return tmp_path / "run"


def test_circuits_are_in_the_order_of_members(folder):
    for name in ("10", "9", "union", "0"):
        (folder / f"circuits/{name}.safetensors").touch()
    assert [path.stem for path in circuit_files(folder)] == ["0", "9", "10", "union"]
    (folder / "circuit.safetensors").touch()
    assert circuit_files(folder) == [folder / "circuit.safetensors"]


def test_a_run_without_circuits_says_what_to_do(folder):
    with pytest.raises(UserError, match="has no circuit yet; finish the run first"):
        circuit_files(folder)


def test_the_run_of_a_file_gives_it_a_name(folder, tmp_path):
    alone, member, apart = folder / "circuit.safetensors", folder / "circuits/1.safetensors", tmp_path / "x.safetensors"
    assert [run_of(path) for path in (alone, member, apart)] == [folder, folder, None]
    assert [name_of(run_of(path), path) for path in (alone, member, apart)] == ["run", "run/1", "x"]


def test_names_are_unique():
    assert unique("a", []) == "a"
    assert unique("a", ["a", "a-2", "b"]) == "a-3"
    assert unique(Path("x/y").name, {"y"}) == "y-2"
