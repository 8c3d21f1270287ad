"""`bigcircuit convert`: circuits that other tools have found, as circuit files of this project. Loads no weights.

All formats end alike: neurons are kept where their head or MLP is, and edges are not kept apart. What the nodes of a format are
kept by is its RULE, which stands in `--help` and, with this, in the metadata of the file that is written.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from bigcircuit.circuit.circuit import FORMAT, Circuit
from bigcircuit.circuit.metadata import model_metadata
from bigcircuit.convert import eap_ig, edge_pruning
from bigcircuit.convert.config import ConversionSettings
from bigcircuit.convert.nodes import KeptNodes, masks_of_nodes
from bigcircuit.errors import UserError
from bigcircuit.gates.members import node_counts
from bigcircuit.io.files import file_sha256
from bigcircuit.io.provenance import versions
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.granularity import LayerShape
from bigcircuit.model.load import skeleton


class ConvertFormat(NamedTuple):
    """How circuits of another tool are read, from parsed JSON."""

    recognises: Callable[[Any], bool]
    read: Callable[[Any, Sequence[LayerShape], str], KeptNodes]
    rule: str
    """Which heads and MLPs are kept."""
    if_empty: str
    """Why a file may keep nothing, and what to do."""


CONVERT_FORMATS: dict[str, ConvertFormat] = {
    "EAP-IG graph": ConvertFormat(eap_ig.recognises, eap_ig.read, eap_ig.RULE, eap_ig.IF_EMPTY),
    "Edge-Pruning edges": ConvertFormat(
        edge_pruning.recognises, edge_pruning.read, edge_pruning.RULE, edge_pruning.IF_EMPTY
    ),
}
"""Name -> format. One more is one more entry."""

COMMON_RULE = "All edges among kept nodes and all neurons of a kept head or MLP are kept; embeddings are never masked."


class Converted(NamedTuple):
    """What was written."""

    path: Path
    circuit: Circuit
    notes: Sequence[str]
    """What its user has to know: the size, and what of the other tool's file has no place in a circuit file."""


def help_text(usage: str) -> str:
    """Usage, and the rule of every format."""
    rules = [f"{name}: {one.rule}" for name, one in CONVERT_FORMATS.items()]
    return "\n\n".join([usage, *rules, COMMON_RULE])


def convert_file(path: Path, settings: ConversionSettings) -> Converted:
    """Read a circuit of another tool and write it as a circuit file.

    Raises UserError for a file that cannot be read, is of another model, or keeps nothing, and where the output exists.
    """
    output = Path(settings.output) if settings.output else path.with_suffix(".safetensors")
    data = _parsed(path)
    name = next((name for name, one in CONVERT_FORMATS.items() if one.recognises(data)), None)
    if name is None:
        raise UserError(f"{path}: JSON of no known format; {_KNOWN}")
    if output.exists():
        raise UserError(f"{output}: exists already; move it, or name another file with --output")
    shapes = skeleton(settings.model).shapes
    kept = CONVERT_FORMATS[name].read(data, shapes, str(path))
    if not kept.nodes:
        raise UserError(f"{path}: keeps no head and no MLP, so there is no circuit; {CONVERT_FORMATS[name].if_empty}")
    made = masks_of_nodes(kept.nodes, shapes)
    hashes = fingerprint(settings.model)
    metadata = model_metadata(settings.model, hashes, shapes) | {
        "ablation": settings.ablation,
        "granularities": json.dumps(list(made)),
        "operation": f"converted from {name}: {CONVERT_FORMATS[name].rule} {COMMON_RULE}",
        "converted_file": path.name,
        "converted_sha256": file_sha256(path),
        "versions": json.dumps(versions()),
    }
    circuit = Circuit(made, {}, metadata)
    circuit.save(output)
    unhashed = (
        []
        if hashes["weights"]
        else ["the model's weights are not here, so evaluate cannot check that they are the same"]
    )
    notes = [f"note: {note}" for note in [*kept.notes, *unhashed]]
    return Converted(output, circuit, [_size(name, circuit, shapes), *notes])


_KNOWN = f"convert reads {' and '.join(CONVERT_FORMATS)} (`bigcircuit convert --help`)"


def _size(name: str, circuit: Circuit, shapes: Sequence[LayerShape]) -> str:
    kept, nodes = circuit.sizes(), node_counts(shapes, ("head", "mlp"))
    return (
        f"{name}: {kept['head']} of {nodes['head']} heads and {kept['mlp']} of {nodes['mlp']} MLPs are kept, with all their "
        f"neurons {kept['total']} of {nodes['total']}, under {circuit.ablation.name} ablation"
    )


def _parsed(path: Path) -> Any:
    """The content of a JSON file. Raises UserError saying what the file is instead."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a circuit file of another tool") from error
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_instead(path, content, error)}") from error


def _instead(path: Path, content: bytes, error: Exception) -> str:
    """What a file is that is not JSON, and what to do."""
    if content.startswith((b"PK\x03\x04", b"\x80")):
        return (
            "a pickle of PyTorch, which may run code when it is read and is not read here; in EAP-IG write it as JSON: "
            "Graph.from_pt(FILE), nodes_scores and neurons_in_graph set to None where there are any, then to_json"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                return f"a circuit file of the format {FORMAT} already; evaluate, compare and report take it as it is"
            return f"a safetensors file that holds no circuit; {_KNOWN}"
    except SafetensorError:
        return f"not readable as JSON ({error}); copy it again: {_KNOWN}"
