"""Circuits on a hub and in folders, with their cards."""

import json
import os
import subprocess
import sys

import pytest

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.hub import is_hub_id
from bigcircuit.errors import UserError
from tests.helpers.hub import local_hub

SCRIPT = """
import sys, bigcircuit
circuit = bigcircuit.Circuit.load(sys.argv[1])
address = circuit.push_to_hub("lab/ioi-circuit", token="good")
assert address.endswith("/lab/ioi-circuit"), address
assert bigcircuit.Circuit.from_pretrained("lab/ioi-circuit") == circuit
assert bigcircuit.Circuit.from_pretrained("lab/ioi-circuit", revision="main").metadata == circuit.metadata
for attempt in (
    lambda: circuit.push_to_hub("lab/ioi-circuit", token="bad"),
    lambda: bigcircuit.Circuit.from_pretrained("lab/nothing"),
):
    try:
        attempt()
    except bigcircuit.UserError as error:
        print(error)
"""


def test_upload_and_download_through_the_interface_of_the_hub(finished_run, tmp_path):
    with local_hub("good") as (address, repositories):
        place = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, finished_run.path], env=os.environ | place, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    refused, missing = done.stdout.splitlines()
    assert refused.startswith("lab/ioi-circuit: cannot be written (") and refused.endswith("`hf auth login`")
    assert missing.startswith("lab/nothing: has no circuit.safetensors that can be downloaded")
    files = repositories["lab/ioi-circuit"]
    assert sorted(files) == ["README.md", "circuit.safetensors", "circuit.svg"]
    assert files["circuit.safetensors"] == (finished_run.path / "circuit.safetensors").read_bytes()
    assert 'from_pretrained("lab/ioi-circuit")' in files["README.md"].decode()


def test_a_folder_opens_again_and_has_a_card(finished_run, tmp_path):
    circuit = Circuit.load(finished_run.path)
    folder = circuit.save_pretrained(str(tmp_path / "shared"))
    assert Circuit.from_pretrained(folder) == Circuit.load(str(folder)) == circuit
    card = (folder / "README.md").read_text()
    kl = circuit.scores["kl"]
    assert f"| KL, nats ↓ | {kl.mean:.3f} | {kl.low:.3f} to {kl.high:.3f} |" in card
    assert f"| heads | {circuit.sizes()['head']} | 32 |" in card and circuit.nodes()[0].name in card
    assert "![Kept heads and MLPs](circuit.svg)" in card and (folder / "circuit.svg").read_text().startswith("<svg")
    assert card.startswith("---\nlibrary_name: bigcircuit\n") and "| seed | 0 |" in card


def test_a_readme_that_is_no_card_is_not_replaced(finished_run, tmp_path):
    (tmp_path / "README.md").write_text("# My project")
    circuit = Circuit.load(finished_run.path)
    with pytest.raises(UserError, match=r"README\.md: exists already and is no card of a circuit"):
        circuit.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    folder = circuit.save_pretrained(tmp_path / "shared")
    assert circuit.save_pretrained(folder) == folder


def test_text_of_a_stranger_is_only_text_in_a_card(finished_run, tmp_path):
    circuit = Circuit.load(finished_run.path)
    evil = {"task": "x\n---\n<script>|[a](b)`", "model": 'm")\nimport os\n'}
    card = Circuit(circuit.masks, {}, {**circuit.metadata, **evil}).save_pretrained(tmp_path / "c") / "README.md"
    text = card.read_text()
    assert "<script>" not in text and "\nimport os" not in text and "(b)`" not in text
    assert text.count("\n---\n") == 1  # the end of the front matter


def test_a_card_names_no_folders_of_this_machine(finished_run, tmp_path):
    circuit = Circuit.load(finished_run.path)
    local = {
        "model": "/home/me/my models/llama", "task": "/home/me/pairs.jsonl", "adapter": "~/adapters/lora",
        "ablation_data": "/home/me/other.jsonl", "parents": json.dumps([{"name": "/home/me/runs/a"}, "/home/me/runs/b"]),
    }  # fmt: skip
    folder = Circuit(circuit.masks, {}, {**circuit.metadata, **local}).save_pretrained(tmp_path / "c")
    card = (folder / "README.md").read_text()
    assert "/home/me" not in card and "~/" not in card and str(tmp_path) not in card
    for shown in ("Circuit of …/pairs.jsonl in …/llama", "| …/other.jsonl |", "| …/a, …/b |", "| …/lora |"):
        assert shown in card


@pytest.mark.parametrize(
    "name, known", [("lab/name", True), ("a/b/c", False), ("runs", False), ("a/c.safetensors", False), ("~/x/y", False)]
)
def test_names_of_the_hub(name, known):
    assert is_hub_id(name) is known


def test_a_name_that_is_none_is_refused(finished_run):
    with pytest.raises(UserError, match="no name: not a name on the hub"):
        Circuit.load(finished_run.path).push_to_hub("no name")
