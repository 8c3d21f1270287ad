"""Options of `bigcircuit export` beside those of a config. Light, so that a typo is answered at once."""

from typing import Annotated

from pydantic import Field

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.config.schema import AblationName, Section

FREEZABLE = tuple(
    name for name, kind in KINDS.items() if not kind.needs_corrupted and not kind.per_position and kind.sample is None
)
"""Ablations that weights can hold: what closed nodes output depends neither on another prompt nor on the position nor on chance."""
Limit = Annotated[int, Field(ge=1)] | None


class ExportSettings(Section):
    """What is written, and how closely it is looked at."""

    format: str | None = None
    """Format of the model, see the list below."""
    output: str | None = None
    """Folder to write; it may not exist yet."""
    ablation: AblationName | None = None
    """What closed nodes output in the exported model: zero, mean or optimal; by default what the circuit was found under. Under
    another one the circuit is scored again."""
    mlp_neurons: Limit = None
    """Most MLP neurons of a layer; of a layer that keeps more, the weakest are closed as well, and the loss is measured."""
    kv_heads: Limit = None
    """Most key/value heads of a layer, likewise."""
    heads_per_group: Limit = None
    """Most query heads that share a key/value head, likewise."""
    multiple_of: Annotated[int, Field(ge=1)] = 1
    """MLP widths are padded with zeros to a multiple of this (64 suits GPUs)."""
    verify: bool = True
    """Open the export in a fresh process by the loader of its format, and compare logits and greedy text with the masked model."""
    speed: bool = True
    """Measure tokens per second of the export and of the base model in that process."""
    any_model: bool = False
    """Allow a model of the same widths that is not the one a circuit was found in."""

    @property
    def limits(self) -> dict[str, int]:
        """The limits that are set."""
        names = ("mlp_neurons", "kv_heads", "heads_per_group")
        return {name: limit for name in names if (limit := getattr(self, name)) is not None}
