"""Members of one population do not depend on each other, and have the sizes that were asked for."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.hard_concrete import probability_open
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import node_counts
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import current_masks, update
from tests.helpers.tiny_models import TINY, tiny_examples, tiny_model

SETTINGS = [
    {"train.seed": 0, "penalty.mlp_neuron": 0.5},
    {"train.seed": 1, "penalty.head": 2.0, "train.lr": 0.3},
    {"train.seed": 2, "target.total": 40, "gates.init": 1.0},
    {"train.seed": 0, "train.steps": 4, "train.hinge": 0.5},
]
BASE = {"gates.parametrisation": "hard_concrete", "train.steps": 8, "train.lr_warmup": 0.0, "train.penalty_ramp": 0.5}


@pytest.fixture(scope="module")
def frozen():
    return tiny_model("llama", TINY)


def trained(frozen, settings, checkpointing=False, padding="right", steps=8):
    config = load(None, {**BASE, "population.members": settings, "task.padding": padding})
    population = Population.new(members(config), frozen.shapes)
    state = TrainState.new(population, node_counts(frozen.shapes, config.gates.granularities))
    chosen, micro_batches = tiny_examples(4), MicroBatches.of(config, Ranks())
    with Streams(frozen, INTERCHANGE, checkpointing) as streams:
        references = ReferenceLogits(streams, chosen, micro_batches)
        for _ in range(steps):
            update(state, streams, references, chosen, micro_batches)
    return state


def gates(state, member):
    return torch.cat([values.detach().flatten() for values in state.population.members[member].parameters()])


def test_members_together_are_what_they_are_alone(frozen):
    together = trained(frozen, SETTINGS)
    for index, setting in enumerate(SETTINGS):
        alone = trained(frozen, [setting])
        torch.testing.assert_close(gates(together, index), gates(alone, 0), atol=1e-6, rtol=0)
        assert together.member_states[index].duals.value == pytest.approx(alone.member_states[0].duals.value, abs=1e-6)
    assert not torch.allclose(gates(together, 0), gates(together, 1), atol=1e-2)
    assert together.population.members[3].step == 4


@pytest.mark.parametrize("change", [{"checkpointing": True}, {"padding": "left"}])
def test_neither_padding_nor_checkpointing_changes_the_gates(frozen, change):
    torch.testing.assert_close(
        gates(trained(frozen, SETTINGS[:2]), 0), gates(trained(frozen, SETTINGS[:2], **change), 0), atol=1e-5, rtol=0
    )


def test_expected_open_equals_a_count_of_samples(frozen):
    population = Population.new(
        members(load(None, {"gates.init": 0.5, "gates.init_spread": 2.0, "gates.clamp": 4.0})), frozen.shapes
    )
    stacked = population.stack()
    expected = population.expected_open()
    opened = torch.zeros(())
    draws = 4000
    for index in range(len(frozen.shapes)):
        masks = population.draw(range(draws))(index)
        opened = opened + sum((masks[site] > 0).float().sum() for site in ("attention", "mlp")) / draws
    assert opened.item() == pytest.approx(expected["total"].item(), rel=0.02)
    blocks = probability_open(stacked["block"]).sum()
    assert expected["block"].item() == pytest.approx(blocks.item(), rel=1e-5)


@pytest.mark.parametrize(
    "sizes", [{"total": 33}, {"head": 3, "attention_neuron": 10, "mlp_neuron": 12}, {"block": 2}, {"mlp_neuron": 5}]
)
def test_asked_size_is_delivered_after_training(frozen, sizes):
    state = trained(frozen, [{f"target.{name}": size for name, size in sizes.items()}], steps=4)
    masks = current_masks(state, frozen)[0]
    delivered = {name: int(mask.sum()) for name, mask in masks.items()}
    delivered["total"] = delivered["attention_neuron"] + delivered["mlp_neuron"]
    assert {name: delivered[name] for name in sizes} == sizes
