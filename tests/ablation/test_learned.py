"""Learned constants in training: members change nothing in each other, resuming is exact."""

from dataclasses import replace

import pytest
import torch

from bigcircuit.config.load import load, members
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.activation_means import mean_ablation, moments
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import node_counts
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import update, validate
from tests.helpers.interrupted_runs import Result, run_or_resume, stop
from tests.helpers.tiny_models import DENSE_SITES, TINY, tiny_examples, tiny_model

SETTINGS = [
    {"train.seed": 0, "penalty.mlp_neuron": 0.5},
    {"train.seed": 1, "penalty.head": 2.0, "ablation.lr": 0.1},
    {"train.seed": 0, "train.steps": 4},
]


@pytest.fixture(scope="module")
def frozen():
    return tiny_model("llama", TINY)


def new_state(frozen, settings, **values):
    config = load(None, {
        "ablation.kind": "optimal", "train.steps": 8, "train.lr_warmup": 0.0, "population.members": settings, **values,
    })  # fmt: skip
    population = Population.new(members(config), frozen.shapes)
    population.start_constants(
        moments(frozen, tiny_examples(4), MicroBatches(2), per_position=False, prompts="corrupted")
    )
    return TrainState.new(population, node_counts(frozen.shapes, config.gates.granularities))


def train(frozen, state, steps, checkpointing=False):
    chosen, micro_batches = tiny_examples(4), MicroBatches(2)
    start = replace(mean_ablation(frozen, chosen, micro_batches), name="optimal")
    with Streams(frozen, start, checkpointing) as streams:
        references, full = (ReferenceLogits(streams, chosen, micro_batches, full=whole) for whole in (False, True))
        for _ in range(steps):
            update(state, streams, references, chosen, micro_batches)
            validate(state, streams, Targets(chosen, full, full=True), micro_batches)
    return state


def everything(state, member):
    return torch.cat([values.detach().flatten() for values in state.population.members[member].parameters()])


def test_members_that_learn_constants_together_are_what_they_are_alone(frozen):
    together = train(frozen, new_state(frozen, SETTINGS), 8)
    for index, setting in enumerate(SETTINGS):
        alone = train(frozen, new_state(frozen, [setting]), 8)
        torch.testing.assert_close(everything(together, index), everything(alone, 0), atol=5e-5, rtol=0)
    offsets = [member.offset for member in together.population.members]
    assert 0.02 < offsets[0]["mlp"].abs().max() < 0.17, "at most 8 steps of 0.02 units"
    assert 0.17 < offsets[1]["mlp"].abs().max() < 0.9, "a learning rate of its own"
    again = train(frozen, new_state(frozen, SETTINGS), 8, checkpointing=True)
    torch.testing.assert_close(everything(together, 0), everything(again, 0), atol=5e-5, rtol=0)


def test_constants_take_steps_of_adam_along_the_gradient_of_the_objective(frozen):
    state = new_state(frozen, SETTINGS[:1])
    member = state.population.members[0]
    train(frozen, state, 1)
    first = {site: state.member_states[0].optimizer.state[offset]["exp_avg"] for site, offset in member.offset.items()}
    for site, offset in member.offset.items():
        moved = first[site].abs() > 1e-7  # Adam's epsilon is far below
        torch.testing.assert_close(offset[moved], -0.02 * first[site][moved].sign(), atol=2e-4, rtol=0)
    assert state.member_states[0].optimizer.param_groups[1]["lr"] == pytest.approx(0.02)


def test_gates_and_constants_are_clipped_apart(frozen):
    state = new_state(frozen, SETTINGS[:1], **{"train.clip": 1e-4})
    train(frozen, state, 1)
    for kind in (state.population.members[0].log_alpha, state.population.members[0].offset):
        moments_ = torch.cat(
            [state.member_states[0].optimizer.state[values]["exp_avg"].flatten() for values in kind.values()]
        )
        assert moments_.norm().item() == pytest.approx(0.1 * 1e-4, rel=1e-2)  # 1 - beta_1 of the clipped gradient


def test_a_restored_state_goes_on_bit_for_bit(frozen):
    whole = train(frozen, new_state(frozen, SETTINGS), 8)
    state = train(frozen, new_state(frozen, SETTINGS), 5)
    saved = state.export({})
    saved = saved._replace(tensors={name: tensor.clone() for name, tensor in saved.tensors.items()})
    resumed = new_state(frozen, SETTINGS)
    for unit in resumed.population.spread.values():
        unit.zero_()  # comes from the checkpoint too
    resumed.restore(saved)
    train(frozen, resumed, 3)
    for member in range(3):
        assert torch.equal(everything(whole, member), everything(resumed, member))
        assert whole.member_states[member].best.constants.keys() == set(DENSE_SITES)
        for site, values in whole.member_states[member].best.constants.items():
            assert torch.equal(values, resumed.member_states[member].best.constants[site])


def test_best_gates_keep_the_constants_they_were_validated_with(frozen):
    state = train(frozen, new_state(frozen, SETTINGS[:1]), 2)
    best = state.member_states[0].best
    with torch.no_grad():
        for offset in state.population.members[0].offset.values():
            offset += 100
    train(frozen, state, 1)
    assert state.member_states[0].best is best, "constants that far off do not make a better circuit"
    learned = state.population.learned().constants
    assert all((learned[site][0, :, 0] - best.constants[site]).abs().max() > 1 for site in ("attention", "mlp"))


def test_a_run_with_learned_constants_resumes_exactly(tmp_path, monkeypatch):
    settings = {"ablation__kind": "optimal", "train__validate_every": 3}
    whole = Result.of(run_or_resume(tmp_path / "whole", Ranks(), **settings))
    for step in (4, 9):
        stop(tmp_path / "cut", Ranks(), step, **settings)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("bigcircuit.train.optimal_ablation.optimal_ablation", crash)
        run_or_resume(tmp_path / "cut", Ranks(), **settings)
    found = Result.of(run_or_resume(tmp_path / "cut", Ranks(), **settings))
    assert (found.circuit, found.metrics, found.difference(whole)) == (whole.circuit, whole.metrics, 0)


class Crash(Exception):
    pass


def crash(*_, **__):
    raise Crash
