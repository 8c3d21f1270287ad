"""Which circuit file a path means."""

from pathlib import Path

import pytest

from bigcircuit.circuit.folder import circuit_file, circuit_files
from bigcircuit.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run/circuits").mkdir(parents=True)
    return tmp_path / "run"


def test_circuits_are_in_the_order_of_members(folder):
    for name in ("10", "9", "union", "0"):
        (folder / f"circuits/{name}.safetensors").touch()
    assert [path.stem for path in circuit_files(folder)] == ["0", "9", "10", "union"]
    (folder / "circuit.safetensors").touch()
    assert circuit_files(folder) == [folder / "circuit.safetensors"]


def test_a_run_without_circuits_says_what_to_do(folder):
    with pytest.raises(UserError, match="has no circuit yet; finish the run first"):
        circuit_file(folder)


def test_a_run_with_several_asks_which(folder):
    for name in ("0", "1"):
        (folder / f"circuits/{name}.safetensors").touch()
    with pytest.raises(
        UserError, match=r"has 2 circuits; name one, such as .*circuits/0.safetensors, or give member=0"
    ):
        circuit_file(folder)
    assert circuit_file(folder, 1) == circuit_file(folder, -1) == folder / "circuits/1.safetensors"
    with pytest.raises(UserError, match="member is 2; count from 0"):
        circuit_file(folder, 2)


def test_text_and_the_home_folder_are_understood(folder, monkeypatch):
    (folder / "circuit.safetensors").touch()
    monkeypatch.setenv("HOME", str(folder.parent))
    assert circuit_file("~/run") == circuit_file(str(folder)) == folder / "circuit.safetensors"
    assert circuit_file("elsewhere/c.safetensors") == Path("elsewhere/c.safetensors")
