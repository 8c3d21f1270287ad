"""Trial as Ray Tune runs it: a Trainable that asks the scheduler actor for the reports. Trains nothing itself, loads no torch."""

from typing import Any

import ray
from ray import tune

from bigcircuit.sweep.search import without_numpy


class TuneTrial(tune.Trainable):
    """One trial of the search. Runs on the driver's node and takes no core.

    It registers at its first use and not in `setup`, because Tune may create an actor for a trial that another actor then runs.
    """

    def setup(self, config: dict[str, Any], scheduler: Any = None) -> None:
        """scheduler: handle of the SchedulerActor."""
        self._scheduler = scheduler
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial, or the same one with changed settings."""
        self._settings: dict[str, Any] = without_numpy(new_config)
        self._registered: int | None = None
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the trial's next report and return it. Raises RuntimeError where the trial has failed, as Tune expects."""
        report = ray.get(self._scheduler.next_report.remote(self._number()))
        if report.get("error"):
            raise RuntimeError(report["error"])
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trial's training state, for population-based training to copy."""
        ray.get(self._scheduler.save_checkpoint.remote(self._number(), checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Restore the state that `save_checkpoint` wrote, of this trial or another one (population-based training)."""
        ray.get(self._scheduler.load_checkpoint.remote(self._number(), checkpoint))

    def _number(self) -> int:
        """Return the trial's number; registers the trial the first time."""
        if self._registered is None:
            self._registered = int(ray.get(self._scheduler.register.remote(self.trial_id, self._settings)))
        return self._registered
