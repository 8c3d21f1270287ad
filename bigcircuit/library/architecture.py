"""Architectures that the table does not have, added from Python."""

from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.model.architectures import ARCHITECTURES


def register_architecture(model_type: str, *, like: str = "llama", **paths: Any) -> None:
    """Add a model type to the table of architectures, for this process.

    model_type: as in the Hugging Face config. like: a known type that it resembles. paths: what is another than there, such as
    `mlp="feed_forward.w2"`; see model/architectures.py. Try it as `docs/adding.md` says: all gates open must be the plain model.
    Raises UserError for a type that is known already, an unknown `like`, or an unknown path.
    """
    if model_type in ARCHITECTURES:
        raise UserError(f"model type {model_type!r} is in the table already; leave register_architecture out")
    if like not in ARCHITECTURES:
        raise UserError(f"like {like!r} is not a known model type; use any of {', '.join(sorted(ARCHITECTURES))}")
    row = ARCHITECTURES[like]
    if wrong := [name for name in paths if name not in row._fields]:
        raise UserError(f"{wrong[0]} is not a path of an architecture; use any of {', '.join(row._fields)}")
    ARCHITECTURES[model_type] = row._replace(**paths)
