"""A trial as Ray Tune sees it: an ordinary trainable, whose member trains in a slot of a model worker. Loads no torch."""

from typing import Any

import ray
from ray import tune

from bigcircuit.sweep.search import plain


class TuneTrial(tune.Trainable):
    """One setting of the search. Runs beside the driver and takes next to nothing.

    It asks for a slot when it is used and not when it is made: Tune may make an actor for a trial that has gone on in another.
    """

    def setup(self, config: dict[str, Any], slots: Any = None) -> None:
        """slots: the handle of the actor, see slots.py."""
        self._slots = slots
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial, or the same one with changed settings."""
        self._settings, self._taken = plain(new_config), None
        return True

    def step(self) -> dict[str, Any]:
        """Up to the next report."""
        report = ray.get(self._slots.report.remote(self._number()))
        if report.get("error"):
            raise RuntimeError(report["error"])
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Where population-based training copies from."""
        ray.get(self._slots.keep.remote(self._number(), checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:
        """And to."""
        ray.get(self._slots.go_back.remote(self._number(), checkpoint))

    def _number(self) -> int:
        if self._taken is None:
            self._taken = ray.get(self._slots.take.remote(self.trial_id, self._settings))
        return self._taken
