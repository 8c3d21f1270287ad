"""Circuits of pretrained models: known answers where there are some, and figures to reach where there are not."""

import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.minimality import Group, without
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import score
from bigcircuit.model.load import load_frozen
from bigcircuit.planted.base import examples_of
from bigcircuit.planted.induction import induction_pairs
from bigcircuit.prune import prune
from tests.helpers.pair_files import write_pairs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def from_root(monkeypatch, shared):
    """Configs name paths relative to the folder of the project."""
    monkeypatch.chdir(ROOT)
    return shared


def test_each_head_of_the_induction_circuit_is_needed_on_every_pair(shared):
    """Otherwise the pairs would not tell it from one head alone."""
    frozen = load_frozen(ModelConfig(path=str(shared / "models/induction_2L1H")))
    examples = examples_of(induction_pairs(300))
    everything = {"attention_neuron": torch.ones(2, 128).bool(), "mlp_neuron": torch.ones(2, 4).bool()}
    places = [(layer, head) for head in range(2) for layer in range(2)]
    circuits = [without(everything, "head", [Group(layer, [head])], frozen.shapes) for layer, head in places]
    with Streams(frozen, INTERCHANGE) as streams:
        needed_1, needed_2, *padding = score(streams, examples, circuits, MicroBatches(60))["kl"]
        assert score(streams, examples, None, MicroBatches(60))["accuracy"].mean() == 1
    assert min(needed_1.min(), needed_2.min()) > 2, "nats"
    assert all(kl.max() < 1e-5 for kl in padding)


def test_induction_is_head_0_of_both_layers_over_five_seeds(shared, tmp_path):
    config = load(
        None,
        {
            "model.path": str(shared / "models/induction_2L1H"),
            "task.name": "pairs",
            "task.path": write_pairs(tmp_path / "pairs.jsonl", induction_pairs(200)),
            "task.keep": "solved",
            "gates.granularities": ["attention", "mlp", "head"],
            "penalty.head": 0.5,
            "penalty.mlp": 0.5,
            "train.steps": 150,
            "population.seeds": 5,
            "output": str(tmp_path / "run"),
        },
    )
    folder = prune(config, Ranks())
    summary = json.loads(folder.summary.read_text())
    assert summary["full"]["accuracy"]["mean"] == 1
    for member in summary["members"]:
        masks = Circuit.load(folder.path / member["circuit"]).masks
        assert masks["head"].tolist() == [[True, False], [True, False]]
        assert not masks["mlp"].any()
        assert member["scores"]["kl"]["mean"] < 0.01
    assert summary["empty"]["accuracy"]["mean"] < 0.05


def sorting_pairs(count: int) -> list[dict]:
    """Six letters -> the same letters in order; corrupted ends alike and sorts differently."""
    rng = random.Random(0)
    inputs = [list(letters) for letters in itertools.product(range(3), repeat=6)]
    rows = []
    while len(rows) < count:
        clean = rng.choice(inputs)
        corrupted = rng.choice(inputs)
        if (
            clean[-1] == corrupted[-1]
            and sorted(clean) != sorted(corrupted)
            and clean not in [r["clean"] for r in rows]
        ):
            rows.append(
                {
                    "clean": clean,
                    "corrupted": corrupted,
                    "answers": [sorted(clean)],
                    "wrong_answers": [sorted(corrupted)],
                }
            )
    return rows


def test_sorting_has_a_circuit(shared, tmp_path):
    config = load(
        None,
        {
            "model.path": str(shared / "models/sort_letters_3L3H"),
            "task.name": "pairs",
            "task.path": write_pairs(tmp_path / "pairs.jsonl", sorting_pairs(300)),
            "task.keep": "solved",
            "task.split.train": 0.6,
            "task.split.validation": 0.1,
            "task.split.test": 0.3,
            "target.total": 250,
            "train.steps": 500,
            "output": str(tmp_path / "run"),
        },
    )
    summary = json.loads(prune(config, Ranks()).summary.read_text())
    (member,) = summary["members"]
    assert summary["full"]["accuracy"]["mean"] == 1
    assert summary["empty"]["exact_match"]["mean"] < 0.1
    assert member["kept"]["total"] == 250 < 0.4 * summary["nodes"]["total"]
    assert member["scores"]["accuracy"]["mean"] > 0.95
    assert member["scores"]["kl"]["mean"] < 0.15


@pytest.mark.usefixtures("from_root")
def test_stories_reach_their_figures(tmp_path):
    """Two sizes as members of one population; each is what it would be alone."""
    config = load(
        ROOT / "configs/stories260k/natural_pronoun_swap.yaml",
        {"population.members": [{}, {"target.total": 150}], "output": str(tmp_path / "run")},
    )
    summary = json.loads(prune(config, Ranks()).summary.read_text())
    large, small = summary["members"]
    assert summary["nodes"]["total"] == 1180
    assert large["kept"]["total"] <= 297
    assert large["scores"]["kl"]["mean"] <= 0.115
    assert small["kept"]["total"] == 150
    assert small["scores"]["kl"]["mean"] <= 0.20


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/stories260k/*.yaml")) + sorted(ROOT.glob("configs/babyllama105/*.yaml")),
                         ids=lambda p: f"{p.parent.name}-{p.stem}")  # fmt: skip
@pytest.mark.usefixtures("from_root")
def test_every_pair_file_runs_from_its_config(path, tmp_path):
    folder = prune(load(path, {"train.steps": 3, "output": str(tmp_path / "run")}), Ranks())
    summary = json.loads(folder.summary.read_text())
    assert summary["full"]["accuracy"]["mean"] > 0.75
    assert summary["members"][0]["kept"]["total"] == load(path).target.total
