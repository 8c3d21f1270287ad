"""The settings of a sweep in the words of Ray Tune: what to draw, by which algorithm, and what to stop early."""

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


def space(settings: SweepSettings) -> dict[str, Any]:
    """Tune's search space, by dotted key."""
    return {key: _domain(domain, settings.search) for key, domain in settings.space.items()}


def _domain(domain: Domain, search: str) -> Any:
    if isinstance(domain, Range):
        name, ends = domain.chosen
        return _RANGES[name](*ends)
    values = [list(value) if isinstance(value, tuple) else value for value in domain]
    return tune.grid_search(values) if search == "grid" else tune.choice(values)


def planned(settings: SweepSettings) -> list[dict[str, Any]]:
    """The settings of all trials, in order, where the search knows them ahead: the ones that Tune will draw."""
    if settings.search == "optuna":
        return []
    random = np.random.RandomState(settings.seed)
    draws = 1 if settings.search == "grid" else settings.trials
    found = [
        spec["config"]
        for _ in range(draws)
        for _, spec in generate_variants({"config": space(settings)}, random_state=random)
    ]
    return [plain(one) for one in found]


def trial_count(settings: SweepSettings) -> int:
    """How many trials the sweep has in all."""
    return len(planned(settings)) or settings.trials


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without numpy's types."""
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}


def samples(settings: SweepSettings) -> int:
    """What Tune calls num_samples."""
    if settings.scheduler == "pbt":
        return trial_count(settings)
    return 1 if settings.search == "grid" else settings.trials


def algorithm(settings: SweepSettings, before: Mapping[int, Mapping[str, Any]], at_once: int) -> Any:
    """The search algorithm, for so many trials at once.

    before: the settings that the trials of an interrupted sweep have now, by number; they come first again.
    """
    if settings.scheduler == "pbt":
        # Tune changes settings from where it believes them to be, so it is told where they are.
        trials = dict(enumerate(planned(settings))) | before
        return BasicVariantGenerator(list(map(dict, trials.values())), max_concurrent=at_once)
    if settings.search != "optuna":
        return BasicVariantGenerator(max_concurrent=at_once, random_state=np.random.RandomState(settings.seed))
    import optuna
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = settings.seed + len(before)  # what comes after those must not be drawn as they were
    sampler = TPESampler(seed=seed, multivariate=True, constant_liar=True)
    return OptunaSearch(
        metric=["neurons", "kl"],
        mode=["min", "min"],
        sampler=sampler,
        points_to_evaluate=list(map(dict, before.values())) or None,
    )


class Asha(AsyncHyperBandScheduler):
    """Tune's, for sweeps that go on: a report that has been told before an interruption counts at its rung, but what was
    decided on it then stands. Told in another order it could stop a trial that was let go on.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What Tune is to do with the trial."""
        action = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result["decided"] else action


def scheduler(sweep: Sweep) -> Any:
    """Tune's scheduler; None for the one that stops nothing."""
    settings, train = sweep.settings, sweep.config.train
    every = settings.grace * train.validate_every
    shared = {"time_attr": "step", "metric": settings.metric, "mode": "min"}
    if settings.scheduler == "asha":
        return Asha(max_t=max(train.steps, every), grace_period=every, reduction_factor=settings.reduction, **shared)
    if settings.scheduler == "pbt":
        return PopulationBasedTraining(
            perturbation_interval=every,
            hyperparam_mutations={key: _mutation(domain) for key, domain in settings.space.items()},
            custom_explore_fn=partial(_within, settings.space),
            **shared,
        )
    return None


def _mutation(domain: Domain) -> Any:
    """A range is drawn from again or its value multiplied; in a list the value moves to a neighbour."""
    return _domain(domain, "random") if isinstance(domain, Range) else list(domain)


def _within(space: Mapping[str, Domain], settings: dict[str, Any]) -> dict[str, Any]:
    """Changed settings, no further than the ends of their ranges."""
    ends = {key: domain.chosen[1] for key, domain in space.items() if isinstance(domain, Range)}
    return settings | {key: min(max(settings[key], low), high) for key, (low, high) in ends.items()}
