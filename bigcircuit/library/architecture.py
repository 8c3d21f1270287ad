"""Architectures that the tables do not have, added from Python."""

from bigcircuit.errors import UserError
from bigcircuit.model.architectures import ARCHITECTURES, LAYERS, PROJECTIONS


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
