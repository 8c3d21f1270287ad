"""Schedules against closed forms and interpolation by numpy."""

import numpy as np
import pytest

from bigcircuit.config.load import load
from bigcircuit.gates.schedules import COARSE, allowed_size, learning_rate, pressure, temperature

DONE = np.linspace(0, 1, 101)


def train_config(**settings):
    return load(None, {f"train.{name}": value for name, value in settings.items()}).train


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    train = train_config(lr=0.2, lr_final=0.1, lr_warmup=0.25, steps=100)
    rates = np.array([learning_rate(train, done) for done in DONE])
    assert rates[0] == pytest.approx(0.2 * 0.01 / 0.26), "the first update moves the gates"
    np.testing.assert_allclose(np.diff(rates[:25], 2), 0, atol=1e-12)
    assert rates[25] == rates.max() == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0.2 * 0.1)
    middle = [learning_rate(train, 0.25 + 0.75 * (k + 0.5) / 1000) for k in range(1000)]
    assert np.mean(middle) == pytest.approx(0.2 * (1 + 0.1) / 2), "the mean of a cosine is half-way between its ends"
    half_way = learning_rate(train, 0.25 + 0.75 / 2)
    assert half_way == pytest.approx(0.2 * (1 + 0.1) / 2)


def test_without_a_warmup_the_learning_rate_starts_at_its_highest():
    assert learning_rate(train_config(lr=0.3, lr_warmup=0.0), 0.0) == pytest.approx(0.3)


@pytest.mark.parametrize("ramp", [0.0, 0.4])
@pytest.mark.parametrize(("name", "start"), [("mlp_neuron", 0.1), ("head", 0.3), ("block", 0.3), ("total", 0.1)])
def test_a_penalty_rises_from_its_start_over_its_ramp(name, start, ramp):
    train = train_config(penalty_start=0.1, coarse_start=0.3, penalty_ramp=ramp)
    found = [pressure(train, name, done) for done in DONE]
    after = max(ramp, 1e-12)
    expected = np.interp(DONE, [start - 1e-12, start, start + after, 2.0], [0.0, 0.0 if ramp else 1.0, 1.0, 1.0])
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_coarse_granularities_are_those_above_the_neurons():
    train = train_config(penalty_start=0.0, coarse_start=0.9, penalty_ramp=0.0)
    delayed = {
        name for name in (*COARSE, "attention_neuron", "mlp_neuron", "mlp_output") if not pressure(train, name, 0.5)
    }
    assert delayed == {"block", "attention", "mlp", "kv_group", "head", "mixer", "mixer_head"}


def test_the_allowed_size_shrinks_by_equal_factors_down_to_the_asked_one():
    train = train_config(penalty_start=0.0, coarse_start=0.0, penalty_ramp=0.5)
    sizes = np.array([allowed_size(train, 1000, 10, done) for done in DONE])
    np.testing.assert_allclose(sizes[:51], np.geomspace(1000, 10, 51))
    np.testing.assert_allclose(sizes[51:], 10)
    assert allowed_size(train, 1000, 5000, 1.0) == 1000, "never more than there is"


def test_the_temperature_falls_by_equal_factors():
    gates = load(None, {"gates.temperature": 2.0, "gates.temperature_final": 0.02}).gates
    np.testing.assert_allclose([temperature(gates, done) for done in DONE], np.geomspace(2.0, 0.02, 101))
