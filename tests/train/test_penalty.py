"""Penalties and dual variables against closed forms."""

import pytest
import torch

from bigcircuit.config.load import load
from bigcircuit.train.penalty import Duals, fixed_terms, total


def at_the_end(**overrides):
    """Duals of one size, of 4 of 10 heads, whose ramp is over."""
    values = {"gates.parametrisation": "hard_concrete", "target.head": 4, "train.penalty_ramp": 0.0, **overrides}
    return Duals(load(None, values), {"head": 10})


def test_dual_rises_while_too_large_and_falls_when_too_small():
    """The published code ascends with the wrong sign."""
    duals = at_the_end()
    duals.update({"head": torch.tensor(8.0)}, 1.0)
    risen = duals.value["head"]
    assert risen > 0
    size = torch.tensor(8.0, requires_grad=True)
    duals.terms({"head": size}, 1.0)["head"].backward()
    assert size.grad > 0, "descent on the loss must shrink the circuit"
    duals.update({"head": torch.tensor(2.0)}, 1.0)
    assert duals.value["head"] < risen


@pytest.mark.parametrize("size", [2.0, 4.0, 7.0])
def test_the_term_is_an_augmented_lagrangian(size):
    duals = at_the_end(**{"train.dual_stiffness": 3.0})
    duals.value["head"] = 0.5
    expected = torch.tensor(size, requires_grad=True)
    term = duals.terms({"head": expected}, 1.0)["head"]
    excess = size / 4 - 1
    assert term.item() == pytest.approx(0.5 * excess + 1.5 * max(excess, 0) ** 2)
    term.backward()
    assert expected.grad.item() == pytest.approx((0.5 + 3.0 * max(excess, 0)) / 4)


@pytest.mark.parametrize(("wanted", "optimum", "multiplier"), [(8.0, 4.0, 16.0), (3.0, 3.0, 0.0)])
def test_descent_and_ascent_together_find_the_constrained_optimum(wanted, optimum, multiplier):
    """(x - wanted)^2 / 2 under x <= 4: where the bound holds x back, its gradient wanted - x is multiplier / 4."""
    duals = at_the_end(**{"train.dual_lr": 0.5, "train.dual_stiffness": 1.0})
    x = torch.tensor(9.0, requires_grad=True)
    for _ in range(600):
        loss = (x - wanted) ** 2 / 2 + total(duals.terms({"head": x}, 1.0))
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x -= 0.1 * gradient
        duals.update({"head": x}, 1.0)
    assert x.item() == pytest.approx(optimum, abs=1e-3)
    assert duals.value["head"] == pytest.approx(multiplier, abs=1e-2)


def test_the_bound_of_the_duals_falls_over_the_ramp():
    duals = at_the_end(**{"train.penalty_ramp": 1.0, "train.penalty_start": 0.0, "train.coarse_start": 0.0})
    for done, allowed in ((0.0, 10.0), (0.5, (10 * 4) ** 0.5), (1.0, 4.0)):
        at_bound = torch.tensor(allowed)
        assert duals.terms({"head": at_bound}, done)["head"].item() == pytest.approx(0, abs=1e-6)
        duals.update({"head": at_bound + 1}, done)
        assert duals.value["head"] > 0
        duals.value["head"] = 0.0
        duals.update({"head": at_bound - 1}, done)
        assert duals.value["head"] == 0, "a multiplier is never negative"


def test_gates_with_exact_sizes_have_no_duals():
    duals = at_the_end(**{"gates.parametrisation": "sigmoid_top_k"})
    assert duals.value == {} and duals.terms({}, 1.0) == {}


def test_a_fixed_penalty_is_its_weight_times_the_open_share():
    settings = {"train.penalty_start": 0.0, "train.coarse_start": 0.5, "train.penalty_ramp": 0.5}
    penalties = {"penalty.head": 2.0, "penalty.mlp_neuron": 0.5, "penalty.attention": 0.0}
    expected, nodes = {"head": torch.tensor(3.0), "mlp_neuron": torch.tensor(30.0)}, {"head": 12, "mlp_neuron": 40}
    config = load(None, {**settings, **penalties})
    for done, head, neurons in ((0.25, 0.0, 0.5), (0.75, 0.5, 1.0), (1.0, 1.0, 1.0)):
        terms = fixed_terms(config, expected, nodes, done)
        assert {name: term.item() for name, term in terms.items() if name in expected} == pytest.approx(
            {"head": 2.0 * head * 3 / 12, "mlp_neuron": 0.5 * neurons * 30 / 40}
        )
        assert "attention" not in terms


def test_what_has_a_target_has_no_fixed_penalty():
    expected, nodes = {"head": torch.tensor(3.0), "mlp_neuron": torch.tensor(30.0)}, {"head": 12, "mlp_neuron": 40}
    weights = {name: 0.0 for name, _ in load(None).penalty} | {"head": 2.0, "mlp_neuron": 0.5}
    penalties = {f"penalty.{name}": weight for name, weight in weights.items()}
    assert set(fixed_terms(load(None, {**penalties, "target.head": 3}), expected, nodes, 1.0)) == {"mlp_neuron"}
    assert fixed_terms(load(None, {**penalties, "target.total": 3}), expected, nodes, 1.0) == {}


def test_terms_are_summed_and_none_are_zero():
    assert total({"a": torch.tensor(1.5), "b": torch.tensor(-0.5)}).item() == 1.0
    assert total({}).item() == 0.0
