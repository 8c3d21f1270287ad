"""Circuit files of runs, runs of circuit files, and short names."""

from pathlib import Path

import pytest

from bigcircuit.errors import UserError
from bigcircuit.results.locate import check_named_once, name_of, run_of, unique


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run/circuits").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    return tmp_path / "run"


def test_the_run_of_a_file_gives_it_a_name(folder, tmp_path):
    alone, member, apart = folder / "circuit.safetensors", folder / "circuits/1.safetensors", tmp_path / "x.safetensors"
    assert [run_of(path) for path in (alone, member, apart)] == [folder, folder, None]
    assert [name_of(run_of(path), path) for path in (alone, member, apart)] == ["run", "run/1", "x"]


def test_names_are_unique():
    assert unique("a", []) == "a"
    assert unique("a", ["a", "a-2", "b"]) == "a-3"
    assert unique(Path("x/y").name, {"y"}) == "y-2"


def test_a_file_is_named_once(folder, tmp_path):
    file, link = folder / "circuit.safetensors", tmp_path / "link.safetensors"
    file.write_text("")
    link.symlink_to(file)
    check_named_once([file, folder / "circuits/1.safetensors"])
    for again in (file, folder / "circuits/../circuit.safetensors", link):
        with pytest.raises(UserError, match="is named twice; name each circuit once"):
            check_named_once([file, again])
