"""Settings of `tracking`: experiment trackers."""

from typing import Literal

from bigcircuit.config.section import Section


class TrackingConfig(Section):
    """Experiment trackers besides metrics.jsonl, which is always written."""

    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers of accelerate that receive the same numbers."""
    project: str = "bigcircuit"
    """Project name there."""
