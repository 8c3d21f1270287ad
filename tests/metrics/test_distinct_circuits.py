"""Circuits of one scoring: equal ones are scored once, and every circuit gets the scores that it has alone, to the bit."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.kept_passes import KeptPasses
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.distinct_circuits import DistinctCircuits
from bigcircuit.metrics.score import score
from tests.helpers.tiny_models import TINY_CONFIGS, tiny_model, uneven_examples


def circuits_of(shapes):
    """Make a circuit, itself without one neuron of each layer, and two of them again."""
    generator = torch.Generator().manual_seed(3)
    widths = {"attention_neuron": shapes[0].heads * shapes[0].head_dim, "mlp_neuron": shapes[0].intermediate}
    masks = {name: torch.rand(len(shapes), width, generator=generator) > 0.4 for name, width in widths.items()}
    found = [masks]
    for layer in reversed(range(len(shapes))):
        other = {name: mask.clone() for name, mask in masks.items()}
        other["mlp_neuron"][layer, :20] ^= True
        found.append(other)
    return [*found, found[2], found[0]]


@pytest.mark.parametrize("at_once", [None, 2, 4])
def test_shared_layers_and_merged_circuits_change_no_bit(monkeypatch, at_once):
    """Micro-batches of few tokens and of many."""
    frozen = tiny_model("llama", TINY_CONFIGS["llama"][0])
    circuits = circuits_of(frozen.shapes)
    with Streams(frozen, INTERCHANGE, kept=KeptPasses(1.0)) as streams:
        found = score(streams, uneven_examples(), circuits, MicroBatches(2), at_once, full=True)
        monkeypatch.setattr(Streams, "can_share", False)
        plain = score(streams, uneven_examples(), circuits, MicroBatches(2), at_once, full=True)
    for name, values in plain.items():
        assert torch.equal(found[name], values), name
    assert len({*found["kl"].mean(1).tolist()[:-3]}) == len(circuits) - 2


def test_equal_circuits_are_one_and_neighbours_share_layers():
    frozen = tiny_model("llama", TINY_CONFIGS["llama"][0])
    circuits, layers = circuits_of(frozen.shapes), len(frozen.shapes)
    merged = DistinctCircuits(circuits, frozen.shapes, merge=True)
    assert len(merged) == layers + 1
    assert merged.places[2] == merged.places[-2] and merged.places[0] == merged.places[-1]
    (chunk,) = merged.chunks(None, frozen.device)
    assert [len(branches) for branches in chunk.branches.members] == [2 + layer for layer in range(layers)]
    apart = DistinctCircuits(circuits, frozen.shapes, merge=False)
    assert apart.places == [*range(len(circuits))]
    assert [one.rows for one in apart.chunks(2, frozen.device)][0] == [0, 1]
    assert apart.chunks(2, frozen.device)[0].branches is None
