"""How long a sweep takes, from what a few updates took."""

from collections.abc import Sequence
from typing import NamedTuple

from bigcircuit.config.schema import Config


class TimeEstimate(NamedTuple):
    """Seconds of one worker with all its slots taken."""

    start: float
    """Until the first update is made: processes, weights, the full model's logits."""
    update: float
    validation: float
    ending: float
    """Validation, final scores and whatever else ends a trial."""
    members: int
    """That it was measured with."""

    def sweep(self, configs: Sequence[Config], slots: int) -> float:
        """Of a worker that trains all of these, so many at a time, one set after the other."""
        parts = [configs[first : first + slots] for first in range(0, len(configs), slots)]
        return self.start + sum(map(self._together, parts))

    def _together(self, configs: Sequence[Config]) -> float:
        """Of trials that begin together; each ends with its own steps, and the others go on without it."""
        found, made = 0.0, 0
        by_length = sorted(configs, key=lambda config: config.train.steps)
        for index, config in enumerate(by_length):
            steps = config.train.steps - made
            if steps:
                each = self.update + self.validation / config.train.validate_every
                share = passes(config, len(configs) - index) / passes(config, self.members)
                found += (steps * each + self.ending) * share
            made = config.train.steps
        return found


def passes(config: Config, members: int) -> int:
    """Forward passes that an update of so many members takes: each has its own, which counts twice with its gradient, and
    where closed nodes output what they do on the corrupted prompt they share one of that.
    """
    return 2 * members + (config.ablation.kind == "interchange")
