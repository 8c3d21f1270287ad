"""bigcircuit: find circuits in large language models by training masks over frozen weights.

The public names are loaded when they are first used, so that a mistake on the command line is answered before torch is imported.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Circuit": "bigcircuit.circuit.circuit",
    "Config": "bigcircuit.config.schema",
    "Population": "bigcircuit.gates.population",
    "Ranks": "bigcircuit.distributed.ranks",
    "Streams": "bigcircuit.forward.streams",
    "UserError": "bigcircuit.errors",
    "load": "bigcircuit.config.load",
    "load_frozen": "bigcircuit.model.load",
    "score": "bigcircuit.metrics.score",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bigcircuit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
