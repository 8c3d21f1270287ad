"""Estimate the duration of a sweep from the measured seconds of a few updates."""

from collections.abc import Sequence
from typing import NamedTuple

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.config.schema import Config


class TimeEstimate(NamedTuple):
    """Measured seconds of one worker with `members` of its slots taken."""

    start: float
    """From the start of the processes to the end of the first update: weights and the full model's logits are in it."""
    update: float
    """One update of all members."""
    validation: float
    """One validation of all members."""
    finish: float
    """Final circuits of all members and their scores."""
    members: int
    """Number of members that were measured."""

    def worker_seconds(self, configs: Sequence[Config], slots: int) -> float:
        """Return the seconds that one worker takes to train all these trials, round by round of `slots` trials each."""
        rounds = [configs[first : first + slots] for first in range(0, len(configs), slots)]
        return self.start + sum(map(self._round_seconds, rounds))

    def _round_seconds(self, configs: Sequence[Config]) -> float:
        """Return the seconds of trials that begin together; each ends after its own steps, and the others continue without it."""
        seconds, made = 0.0, 0
        by_length = sorted(configs, key=lambda config: config.train.steps)
        for index, config in enumerate(by_length):
            steps = config.train.steps - made
            if steps:
                step_seconds = self.update + self.validation / config.train.validate_every
                share = passes_per_update(config, len(configs) - index) / passes_per_update(config, self.members)
                seconds += (steps * step_seconds + self.finish) * share
            made = config.train.steps
        return seconds


def passes_per_update(config: Config, members: int) -> int:
    """Return the cost of an update of `members` members in forward passes.

    Each member has a pass of its own, which counts twice with its gradient; a pass over the corrupted prompts, where the ablation
    needs one, is shared.
    """
    return 2 * members + KINDS[config.ablation.kind].needs_corrupted
