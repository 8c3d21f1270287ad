"""What Tune draws, in which order, and what it stops."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep.search import (
    num_samples,
    planned_settings,
    search_algorithm,
    search_space,
    trial_count,
    trial_scheduler,
    without_numpy,
)
from tests.helpers.sweep_actor import short_sweep

RANGES = {"train.lr": {"log_uniform": [0.01, 0.3]}, "penalty.head": {"integer": [1, 3]}, "train.seed": [0, 1]}


def draws(sweep, before):
    """The settings of all trials, as Tune hands them out."""
    from ray import tune
    from ray.tune.experiment import Experiment

    tune.register_trainable("trial", tune.Trainable)
    settings = sweep.settings
    found = search_algorithm(settings, before, 1)
    found.add_configurations(
        [Experiment("x", "trial", config=search_space(settings), num_samples=num_samples(settings))]
    )
    found.max_concurrent = 0
    return [trial.config for trial in iter(found.next_trial, None)]


@pytest.mark.parametrize("search", [{"search": "grid"}, {"search": "random", "space": RANGES, "trials": 5, "seed": 3}])
def test_tune_draws_the_planned_trials_in_their_order(tmp_path, search):
    sweep = short_sweep(tmp_path, **search)
    planned = planned_settings(sweep.settings)
    assert list(map(without_numpy, draws(sweep, {}))) == planned
    assert len(planned) == trial_count(sweep.settings) == (3 if search["search"] == "grid" else 5)


def test_draws_stay_within_their_ranges_and_depend_on_the_seed(tmp_path):
    many, other = (
        planned_settings(short_sweep(tmp_path, space=RANGES, search="random", trials=60, seed=seed).settings)
        for seed in (0, 1)
    )
    assert many != other
    assert all(0.01 <= one["train.lr"] <= 0.3 and one["train.seed"] in (0, 1) for one in many)
    assert {one["penalty.head"] for one in many} == {1, 2, 3}, "both ends included"
    assert all(type(value) in (int, float) for one in many for value in one.values()), "numpy's scalars are no JSON"
    assert without_numpy({"a": np.float64(0.5), "b": "x"}) == {"a": 0.5, "b": "x"}


def test_optuna_knows_no_trial_ahead(tmp_path):
    settings = short_sweep(tmp_path, space=RANGES, search="optuna", trials=7).settings
    assert planned_settings(settings) == [] and trial_count(settings) == num_samples(settings) == 7


def test_population_based_training_of_a_grid_moves_within_its_lists_and_ranges(tmp_path):
    grid = short_sweep(tmp_path, space={"train.lr": [0.1, 0.2], "train.seed": [3, 4]}, scheduler="pbt")
    planned = planned_settings(grid.settings)
    assert draws(grid, {}) == planned and len(planned) == 4
    from ray.tune.schedulers.pbt import _explore

    ranges = {"train.lr": {"uniform": [0.1, 0.2]}, "train.seed": [3, 4, 5]}
    pbt = trial_scheduler(short_sweep(tmp_path, space=ranges, search="random", scheduler="pbt"))
    for _ in range(30):
        new, _ = _explore(
            {"train.lr": 0.19, "train.seed": 4}, pbt._hyperparam_mutations, 0.25, (1.2, 0.8), pbt._custom_explore_fn
        )
        assert 0.1 <= new["train.lr"] <= 0.2 and new["train.seed"] in (3, 4, 5)


def test_population_based_training_is_resumed_with_the_settings_of_now(tmp_path):
    space = {"train.lr": {"log_uniform": [0.01, 0.3]}, "train.seed": [0, 1]}
    sweep = short_sweep(tmp_path, space=space, search="random", trials=2, scheduler="pbt")
    first, second = planned_settings(sweep.settings)
    changed = {**first, "train.lr": 0.2}
    assert draws(sweep, {0: changed}) == [changed, second]


def test_asha_stops_by_a_report_unless_it_was_decided_on_before(tmp_path):
    asha = trial_scheduler(short_sweep(tmp_path, scheduler="asha", metric="kl", grace=1))
    trials = [SimpleNamespace(trial_id=str(number)) for number in range(4)]
    for trial in trials:
        asha.on_trial_add(None, trial)

    def action(number, kl, decided):
        return asha.on_trial_result(None, trials[number], {"step": 3, "kl": kl, "decided": decided})

    assert action(0, 0.1, False) == "CONTINUE"
    assert action(1, 0.9, False) == "STOP"
    assert action(2, 0.8, True) == "CONTINUE"
    assert action(3, 0.85, False) == "STOP"
    assert asha._brackets[0]._rungs[-1][1].keys() == {"0", "1", "2", "3"}


def test_no_scheduler_stops_nothing(tmp_path):
    assert trial_scheduler(short_sweep(tmp_path)) is None
