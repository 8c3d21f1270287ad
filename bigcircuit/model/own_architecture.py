"""Architectures that the tables do not have: added from Python, or declared by installed packages."""

from collections.abc import Mapping

from bigcircuit.config.own_code import entry_point, load_entry_point
from bigcircuit.errors import UserError
from bigcircuit.model.architectures import ARCHITECTURES, LAYERS, PROJECTIONS, Architecture

ARCHITECTURE_ENTRY_POINTS = "bigcircuit.architectures"
"""Group of entry points in which packages declare architectures: model type -> mapping of the arguments of
`register_architecture`."""


def register_architecture(model_type: str, *, like: str = "llama", **paths: str) -> None:
    """Add a model type to the table of architectures, for this process.

    model_type: as in the Hugging Face config. like: a known type that it resembles. paths: module paths whose names are not known
    yet: `layers` of the list of decoder layers within the model, `attention`, `mlp` and `expert` within a layer; see
    model/architectures.py. Raises UserError for a type that is known already, an unknown `like`, or an unknown path.
    """
    if model_type in ARCHITECTURES:
        raise UserError(f"model type {model_type!r} is in the table already; leave register_architecture out")
    if like not in ARCHITECTURES:
        raise UserError(f"like {like!r} is not a known model type; use any of {', '.join(sorted(ARCHITECTURES))}")
    tables = {"layers": LAYERS, **PROJECTIONS}
    if wrong := [name for name in paths if name not in tables]:
        raise UserError(f"{wrong[0]} is not a path of an architecture; use any of {', '.join(tables)}")
    for name, path in paths.items():
        if path not in tables[name]:
            tables[name].append(path)
    ARCHITECTURES[model_type] = ARCHITECTURES[like]


def declared_architecture(model_type: str) -> Architecture | None:
    """Register what an installed package declares for a model type, and return its row; None if none does. Raises UserError."""
    found = entry_point(ARCHITECTURE_ENTRY_POINTS, model_type)
    if found is None:
        return None
    arguments = load_entry_point(found)
    if not isinstance(arguments, Mapping) or not all(
        isinstance(one, str) for pair in arguments.items() for one in pair
    ):
        raise UserError(
            f"model type {model_type!r}: {found.value} of an installed package is no mapping of texts such as "
            '{"like": "llama", "mlp": "feed_forward.w2"}; mend the package'
        )
    register_architecture(model_type, **arguments)
    return ARCHITECTURES[model_type]
