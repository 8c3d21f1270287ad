"""Circuit files: what is written is what is read, and a change is found."""

import shutil

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.errors import UserError


def test_a_changed_constant_is_found_out(tmp_path):
    mask = {name: torch.ones(2, n).bool() for name, n in (("head", 1), ("attention_neuron", 4), ("mlp_neuron", 4))}
    constants = {"attention": torch.zeros(2, 4), "mlp": torch.full((2, 4), 1.5)}
    Circuit(mask, {}, {"ablation": "optimal"}, constants).save(tmp_path / "c.safetensors")
    assert Circuit.load(tmp_path / "c.safetensors").ablation.constants["mlp"].shape == (1, 2, 1, 4)
    content = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(content.replace(b"\x00\x00\xc0\x3f", b"\x00\x00\xc0\x40", 1))
    with pytest.raises(UserError, match=r"ablation\.mlp is damaged"):
        Circuit.load(tmp_path / "c.safetensors")


def test_damaged_circuit_file_is_refused(finished_run, tmp_path):
    path = tmp_path / "c.safetensors"
    shutil.copy(finished_run.path / "circuit.safetensors", path)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.safetensors: tensor .* is damaged"):
        Circuit.load(path)
