"""What the slots and the model workers say to each other. Light: who only passes it on needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bigcircuit.config.schema import Config

if TYPE_CHECKING:
    from bigcircuit.io.checkpoint import State
    from bigcircuit.train.final_circuits import RunResult


class Entry(NamedTuple):
    """A trial that takes a slot."""

    number: int
    config: Config
    state: State | None
    """Where it goes on; None from the start."""


@dataclass
class Progress:
    """What came of one call, by the number of the trial."""

    seconds: float = 0.0
    updates: int = 0
    """Made by each of those that were in the passes."""
    steps: dict[int, int] = field(default_factory=dict)
    """Where those are now."""
    states: dict[int, State] = field(default_factory=dict)
    """From where they can go on, here or elsewhere."""
    rows: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """New lines for metrics.jsonl."""
    validations: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Those among them that hold a validation."""
    endings: dict[int, RunResult] = field(default_factory=dict)
    """Of trials that have made their last update; they have left."""
    failed: dict[int, str] = field(default_factory=dict)
    """In one line why a trial had to leave."""
