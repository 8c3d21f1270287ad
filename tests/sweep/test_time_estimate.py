"""How long a sweep is estimated to take."""

import pytest

from bigcircuit.config.load import load
from bigcircuit.sweep.time_estimate import TimeEstimate, passes_per_update


def config_of(steps, **settings):
    return load(None, {"train.steps": steps, **{key.replace("__", "."): value for key, value in settings.items()}})


def test_time_is_estimated_with_the_passes_that_updates_take():
    estimate = TimeEstimate(start=10.0, update=2.0, validation=0.0, finish=0.0, members=4)
    assert estimate.worker_seconds([config_of(5)] * 4, 4) == pytest.approx(10 + 5 * 2)
    two_rounds = estimate.worker_seconds([config_of(5)] * 6, 4)
    assert two_rounds == pytest.approx(10 + 5 * 2 + 5 * 2 * (1 + 2 * 2) / (1 + 2 * 4))
    lengths = [config_of(5), config_of(5), config_of(5), config_of(8)]
    assert estimate.worker_seconds(lengths, 4) == pytest.approx(10 + 5 * 2 + 3 * 2 * 3 / 9)
    alone = estimate.worker_seconds([config_of(5, ablation__kind="zero")], 4)
    assert alone == pytest.approx(10 + 5 * 2 / 4), "no corrupted stream to share"


def test_validations_and_the_end_of_trials_take_time():
    estimate = TimeEstimate(start=1.0, update=2.0, validation=6.0, finish=5.0, members=2)
    config = config_of(10, train__validate_every=5)
    assert estimate.worker_seconds([config] * 2, 2) == pytest.approx(1 + 10 * 2 + 2 * 6 + 5)


@pytest.mark.parametrize(
    ("kind", "shared"), [("interchange", 1), ("zero", 0), ("mean", 0), ("optimal", 0), ("noise", 0)]
)
def test_members_share_the_corrupted_pass_of_ablations_that_need_one(kind, shared):
    config = config_of(5, ablation__kind=kind)
    assert [passes_per_update(config, members) for members in (1, 4)] == [2 + shared, 8 + shared]
