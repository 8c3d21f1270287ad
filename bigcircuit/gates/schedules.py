"""Schedules of one member, each a function of how much of its run is done (0 to 1)."""

import math

from bigcircuit.config.schema import GatesConfig, TrainConfig
from bigcircuit.model.granularity import GRANULARITIES, LEAVES

COARSE = tuple(name for name in GRANULARITIES if name not in LEAVES.values())
"""Granularities whose gates close many neurons at once; `train.coarse_start` delays their penalties."""


def learning_rate(train: TrainConfig, done: float) -> float:
    """Learning rate: a linear rise, then a cosine down to `lr_final` of the highest."""
    if done < train.lr_warmup:
        return train.lr * (done + 1 / train.steps) / (train.lr_warmup + 1 / train.steps)
    rest = (done - train.lr_warmup) / max(1 - train.lr_warmup, 1e-9)
    return train.lr * (train.lr_final + (1 - train.lr_final) * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0))))


def pressure(train: TrainConfig, name: str, done: float) -> float:
    """Share of a penalty that acts, from 0 at its start to 1 at the end of its ramp."""
    start = max(train.penalty_start, train.coarse_start if name in COARSE else 0.0)
    if done < start:
        return 0.0
    return min(1.0, (done - start) / train.penalty_ramp) if train.penalty_ramp else 1.0


def allowed_size(train: TrainConfig, everything: float, asked: float, done: float) -> float:
    """Size that target mode allows: from all nodes down to the asked ones, geometrically over the ramp."""
    share = pressure(train, "total", done)
    return everything * (min(asked, everything) / everything) ** share


def temperature(gates: GatesConfig, done: float) -> float:
    """Softness of top-k gates: from the first to the last geometrically."""
    return gates.temperature * (gates.temperature_final / gates.temperature) ** done
