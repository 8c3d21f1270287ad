"""`bigcircuit convert`: write circuits that other tools have found as circuit files of this project. Loads no weights.

Common to all formats: neurons are kept where their head or MLP is, and edges are not kept apart. Which nodes a format keeps is
its RULE; `--help` and the metadata of the written file hold this rule and the common one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from bigcircuit.circuit.circuit import FORMAT, Circuit
from bigcircuit.circuit.metadata import model_metadata
from bigcircuit.config.plain import check_name
from bigcircuit.convert.config import ConversionSettings
from bigcircuit.convert.formats import COMMON_RULE, KNOWN_FORMATS, ConvertFormat, recognise
from bigcircuit.convert.nodes import masks_of_nodes
from bigcircuit.errors import UserError
from bigcircuit.io.files import file_sha256
from bigcircuit.io.provenance import versions
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.granularity import LayerShape, node_counts
from bigcircuit.model.load import skeleton
from bigcircuit.runtime.progress import ProgressDisplay


class Converted(NamedTuple):
    """Result of a conversion: the written file, its circuit, and notes."""

    path: Path
    circuit: Circuit
    notes: Sequence[str]
    """Notes for the user, a sentence each: the size, and which parts of the other tool's file have no place in a circuit file."""


def convert_file(path: Path, settings: ConversionSettings, progress: ProgressDisplay | None = None) -> Converted:
    """Read a circuit of another tool and write it as a circuit file. progress: shows how much of the weights is hashed.

    Raises UserError for a file that cannot be read, is of another model, or keeps nothing, and where the output exists.
    """
    data = _parse(path)
    source_format = recognise(data, str(path))
    output = Path(settings.output) if settings.output else path.with_suffix(".safetensors")
    check_name(str(output), "--output")
    if output.exists():
        raise UserError(f"{output}: exists already; move it, or name another file with --output")
    shapes = skeleton(settings.model).shapes
    kept = source_format.read(data, shapes, str(path))
    if not kept.nodes:
        raise UserError(f"{path}: keeps no head and no MLP, so there is no circuit; {source_format.if_empty}")
    made = masks_of_nodes(kept.nodes, shapes)
    hashes = fingerprint(settings.model, progress)
    metadata = model_metadata(settings.model, hashes, shapes) | {
        "ablation": settings.ablation,
        "granularities": json.dumps(list(made)),
        "operation": f"converted from {source_format.name}: {source_format.rule} {COMMON_RULE}",
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
    return Converted(output, circuit, [_size(source_format, circuit, shapes), *notes])


def _size(source_format: ConvertFormat, circuit: Circuit, shapes: Sequence[LayerShape]) -> str:
    kept, nodes = circuit.sizes(), node_counts(shapes, ("head", "mlp"))
    return (
        f"{source_format.name}: {kept['head']} of {nodes['head']} heads and {kept['mlp']} of {nodes['mlp']} MLPs are kept, with "
        f"all their neurons {kept['total']} of {nodes['total']}, under {circuit.ablation_name} ablation"
    )


def _parse(path: Path) -> Any:
    """Parse a JSON file. Raises UserError naming what the file is if it is not JSON."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a circuit file of another tool") from error
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_describe_other(path, content, error)}") from error


def _describe_other(path: Path, content: bytes, error: Exception) -> str:
    """Describe a file that is not JSON, and what to do with it."""
    if content.startswith((b"PK\x03\x04", b"\x80")):
        return (
            "a pickle of PyTorch, which may run code when it is read and is not read here; in EAP-IG write it as JSON: "
            "Graph.from_pt(FILE), nodes_scores and neurons_in_graph set to None where there are any, then to_json"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                return f"a circuit file of the format {FORMAT} already; evaluate, compare and report take it as it is"
            return f"a safetensors file that holds no circuit; {KNOWN_FORMATS}"
    except Exception:  # whatever safetensors raises: it is no such file
        return f"not readable as JSON ({error}); copy it again: {KNOWN_FORMATS}"
