"""bigcircuit: find circuits in large language models by training masks over frozen weights.

The public names are loaded on first use, so that a mistake on the command line is reported before torch is imported.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bigcircuit.export.loading import register_with_transformers

if TYPE_CHECKING:  # for editors and type checkers, which do not call __getattr__
    from bigcircuit.ablation.ablation import Ablation
    from bigcircuit.circuit.circuit import Circuit
    from bigcircuit.config.load import load
    from bigcircuit.config.schema import Config
    from bigcircuit.distributed.ranks import Ranks
    from bigcircuit.errors import UserError
    from bigcircuit.export.loading import load_exported
    from bigcircuit.forward.streams import Streams
    from bigcircuit.gates.population import Population
    from bigcircuit.library.evaluate import evaluate
    from bigcircuit.library.find import find
    from bigcircuit.metrics.score import score
    from bigcircuit.model.load import load_frozen
    from bigcircuit.model.own_architecture import register_architecture
    from bigcircuit.model.weight_files import EMBEDDED

# By default MKL's products of one to three rows depend in the last bit on the address of the weights, which is another where they
# are mapped from a file than where they are gathered. MKL reads the variable at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

__all__ = [
    "EMBEDDED",
    "Ablation",
    "Circuit",
    "Config",
    "Population",
    "Ranks",
    "Streams",
    "UserError",
    "evaluate",
    "find",
    "load",
    "load_exported",
    "load_frozen",
    "register_architecture",
    "score",
]

_MODULES = {
    "Ablation": "bigcircuit.ablation.ablation",
    "Circuit": "bigcircuit.circuit.circuit",
    "EMBEDDED": "bigcircuit.model.weight_files",
    "Config": "bigcircuit.config.schema",
    "Population": "bigcircuit.gates.population",
    "Ranks": "bigcircuit.distributed.ranks",
    "Streams": "bigcircuit.forward.streams",
    "UserError": "bigcircuit.errors",
    "evaluate": "bigcircuit.library.evaluate",
    "find": "bigcircuit.library.find",
    "load": "bigcircuit.config.load",
    "load_exported": "bigcircuit.export.loading",
    "load_frozen": "bigcircuit.model.load",
    "register_architecture": "bigcircuit.model.own_architecture",
    "score": "bigcircuit.metrics.score",
}
"""Public name -> module that defines the name."""

register_with_transformers()  # so that its Auto classes open compact models; imports nothing


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'bigcircuit' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the names of the package, with the public names that are not imported yet."""
    return sorted({*globals(), *__all__})
