"""Is a circuit of this model? By the widths of its layers, and by the hashes of the model's files."""

import json
from collections.abc import Mapping, Sequence

from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.metadata import HASH_KEYS
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import (
    GRANULARITIES,
    LayerShape,
    fits_values,
    sites_of,
    widest,
    widest_values,
)


def check_widths(
    masks: Mapping[str, Tensor], metadata: Mapping[str, str], shapes: Sequence[LayerShape], subject: str, remedy: str
) -> None:
    """Raises UserError, beginning with `subject` and ending with `remedy`, unless the masks have the widths of the model."""
    known = json.loads(metadata.get("widths", "{}"))
    for name, mask in masks.items():
        widths = [GRANULARITIES[name].width(shape) for shape in shapes]
        found = known.get(name, widths)
        if found != widths or tuple(mask.shape) != (len(widths), widest(shapes, name)):
            raise UserError(
                f"{subject}: its {name} mask has {_few(found)} nodes in {len(mask)} layers and the model {_few(widths)} in "
                f"{len(widths)}; {remedy}"
            )


def check_hashes(
    metadata: Mapping[str, str], now: Mapping[str, str], subject: str, model: Mapping[str, str], remedy: str
) -> None:
    """Raises UserError if a hash in the metadata differs from that of the model; a hash that one of them lacks is not compared.

    now: as `fingerprint` gives them. model: part -> what the model is called there.
    """
    for part, key in HASH_KEYS.items():
        expected = metadata.get(key)
        if part in now and expected and now[part] and now[part] != expected:
            raise UserError(
                f"{subject}: found in {metadata.get('model') or 'another model'}, whose {part} hash is {expected[:12]}, and "
                f"{model[part]} has {now[part][:12]}; {remedy}"
            )


def check_ablation(
    ablation: Ablation, masks: Mapping[str, Tensor], shapes: Sequence[LayerShape], subject: str = "this circuit"
) -> None:
    """Raises UserError unless the tensors of an ablation, where it has any, are of all sites of a model and of its sizes.

    shapes: of the model, or as they are known from a circuit file. subject: with which the error begins.
    """
    for part, found in ablation.tensors().items():
        for site in sites_of(shapes, masks):
            layers, width = len(shapes), widest_values(shapes, site)
            shape = tuple(found[site].shape) if site in found else ()
            if len(shape) != 4 or shape[:2] != (1, layers) or not fits_values(shape[3], shapes, site):
                raise UserError(
                    f"{subject}: the {part} of its {ablation.name} ablation are {list(shape) or 'missing'} at {site}; give float32 "
                    f"[1, {layers}, 1, {width}] there, a row a layer, or by position [1, {layers}, positions, {width}]"
                )


def _few(widths: Sequence[int]) -> str:
    """Format widths: the number where all are equal, else the first four."""
    return (
        str(widths[0])
        if len(set(widths)) == 1
        else ", ".join(map(str, widths[:4])) + ("..." if len(widths) > 4 else "")
    )
