"""Runs without updates: the circuit is the ranking by attribution, cut at the size."""

import pytest
import torch

from bigcircuit.attribution.mask_gradients import integrated_gradients
from bigcircuit.attribution.node_scores import node_scores
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.evaluation.ranking import circuits_of
from bigcircuit.model.granularity import LEAVES
from bigcircuit.prune import prune
from bigcircuit.train.resolve import resolve
from bigcircuit.train.setup import set_up
from tests.helpers.short_runs import QUICK

RANK = "configs/presets/rank.yaml"


def config(folder, **more):
    settings = {key: value for key, value in QUICK.items() if not key.startswith("train.")}
    return load(RANK, {**settings, "target.total": 300, "output": str(folder), **more})


def test_the_circuit_of_a_run_without_updates_is_the_ranking(tmp_path):
    found = Circuit.load(prune(config(tmp_path / "run"), Ranks()).path / "circuit.safetensors")
    context = set_up(resolve(config(tmp_path / "other"), Ranks()))
    with context.streams:
        scores = integrated_gradients(context.streams, context.data.splits["train"], context.micro_batches, points=10)
    (masks,) = circuits_of(
        node_scores({LEAVES[site]: layers for site, layers in scores.items()}),
        "neuron",
        [300],
        context.run.model.shapes,
    )
    assert all(torch.equal(found.masks[name], masks[name]) for name in ("attention_neuron", "mlp_neuron"))
    assert found.metadata["step"] == "0"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gates.warm_start": "none"}, r"train\.steps is 0, so nothing is trained: set gates\.warm_start"),
        ({"target.total": None, "penalty.head": 1.0}, "set gates.warm_start integrated_gradients and target.total"),
        (
            {"target.total": None, "target.head": 4},
            "ranks neurons, not heads: set target.total in place of target.head",
        ),
    ],
)
def test_what_cannot_be_ranked_is_one_line(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        prune(config(tmp_path / "run", **settings), Ranks())
