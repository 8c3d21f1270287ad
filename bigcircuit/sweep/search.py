"""Settings of a sweep as objects of Ray Tune: search space, search algorithm, and the scheduler that stops trials early."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.variant_generator import generate_variants

from bigcircuit.sweep.config import Domain, Range, Sweep, SweepSettings

_RANGES = {
    "uniform": tune.uniform,
    "log_uniform": tune.loguniform,
    "integer": lambda low, high: tune.randint(low, high + 1),
    "log_integer": lambda low, high: tune.lograndint(low, high + 1),
}


def search_space(settings: SweepSettings) -> dict[str, Any]:
    """Return Tune's search space: dotted key -> domain."""
    return {key: _domain(domain, settings.search) for key, domain in settings.space.items()}


def _domain(domain: Domain, search: str) -> Any:
    if isinstance(domain, Range):
        name, ends = domain.kind_and_ends
        return _RANGES[name](*ends)
    values = [list(value) if isinstance(value, tuple) else value for value in domain]
    return tune.grid_search(values) if search == "grid" else tune.choice(values)


def planned_settings(settings: SweepSettings) -> list[dict[str, Any]]:
    """Return the settings of all trials in the order in which Tune draws them; empty where they are not known ahead."""
    if settings.search == "optuna":
        return []
    random = np.random.RandomState(settings.seed)
    draws = 1 if settings.search == "grid" else settings.trials
    drawn = [
        spec["config"]
        for _ in range(draws)
        for _, spec in generate_variants({"config": search_space(settings)}, random_state=random)
    ]
    return [without_numpy(one) for one in drawn]


def trial_count(settings: SweepSettings) -> int:
    """Return the number of trials of the whole sweep."""
    return len(planned_settings(settings)) or settings.trials


def without_numpy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with numpy's scalars as Python's."""
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}


def num_samples(settings: SweepSettings) -> int:
    """Return Tune's `num_samples`: how often it draws from the whole space."""
    if settings.scheduler == "pbt":
        return trial_count(settings)
    return 1 if settings.search == "grid" else settings.trials


def search_algorithm(settings: SweepSettings, before: Mapping[int, Mapping[str, Any]], max_concurrent: int) -> Any:
    """Return Tune's search algorithm.

    before: current settings of the trials of an interrupted sweep, by number; they are drawn first, in this order, where the
    algorithm would draw others. max_concurrent: trials that Tune runs at a time.
    """
    if settings.scheduler == "pbt":
        # Tune perturbs the settings that it has drawn itself, so it has to draw the current ones.
        trials = {**dict(enumerate(planned_settings(settings))), **before}
        return BasicVariantGenerator(list(map(dict, trials.values())), max_concurrent=max_concurrent)
    if settings.search != "optuna":
        return BasicVariantGenerator(max_concurrent=max_concurrent, random_state=np.random.RandomState(settings.seed))
    import optuna
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = settings.seed + len(before)  # the draws after a resume must not repeat those before
    sampler = TPESampler(seed=seed, multivariate=True, constant_liar=True)
    return OptunaSearch(
        metric=["neurons", "kl"],
        mode=["min", "min"],
        sampler=sampler,
        points_to_evaluate=list(map(dict, before.values())) or None,
    )


class Asha(AsyncHyperBandScheduler):
    """Tune's ASHA for sweeps that are resumed: replayed reports update the rungs, but one decided on before never stops its trial.

    Replays come in another order than the reports did, and could stop a trial that the scheduler had continued.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return what Tune does with the trial; result: its report."""
        action = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result["decided"] else action


def trial_scheduler(sweep: Sweep) -> Any:
    """Return Tune's scheduler; None where no trial is stopped early."""
    settings, train = sweep.settings, sweep.config.train
    every = settings.grace * train.validate_every
    shared: dict[str, Any] = {"time_attr": "step", "metric": settings.metric, "mode": "min"}
    if settings.scheduler == "asha":
        return Asha(max_t=max(train.steps, every), grace_period=every, reduction_factor=settings.reduction, **shared)
    if settings.scheduler == "pbt":
        return PopulationBasedTraining(
            perturbation_interval=every,
            hyperparam_mutations={key: _mutation(domain) for key, domain in settings.space.items()},
            custom_explore_fn=partial(_clipped, settings.space),
            **shared,
        )
    return None


def _mutation(domain: Domain) -> Any:
    """Return what PBT changes a setting by: a range is redrawn or its value multiplied, a list moves to a neighbour."""
    return _domain(domain, "random") if isinstance(domain, Range) else list(domain)


def _clipped(space: Mapping[str, Domain], settings: dict[str, Any]) -> dict[str, Any]:
    """Clip changed settings to the ends of their ranges."""
    ends = {key: domain.kind_and_ends[1] for key, domain in space.items() if isinstance(domain, Range)}
    return settings | {key: min(max(settings[key], low), high) for key, (low, high) in ends.items()}
