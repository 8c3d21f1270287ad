"""`bigcircuit convert`: circuits of other tools as circuit files of this project, and the other way. Loads no weights.

Common to all formats that are read: neurons are kept where their head or MLP is, unless the file says which, and edges are not kept
apart. Which nodes a format keeps is its RULE; `--help` and the metadata of the written file hold this rule and the common one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from bigcircuit.circuit.circuit import FORMAT, Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.circuit.metadata import model_metadata
from bigcircuit.circuit.validate import shapes_of
from bigcircuit.config.plain import check_name
from bigcircuit.convert.config import ConversionSettings
from bigcircuit.convert.files import parse_file
from bigcircuit.convert.formats import COMMON_RULE, KNOWN_FORMATS, ConvertFormat, recognise, written_format
from bigcircuit.convert.graph import graph_of, is_parallel
from bigcircuit.convert.nodes import masks_of_nodes
from bigcircuit.errors import UserError
from bigcircuit.io.files import file_sha256
from bigcircuit.io.provenance import versions
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.granularity import GRANULARITIES, LayerShape, node_counts
from bigcircuit.model.load import skeleton
from bigcircuit.runtime.progress import ProgressDisplay

_WITH_EDGES = ("circuit-tracer", "eap-ig", "eap-ig-pt", "edge-pruning", "mib")
"""Formats that hold edges."""


class Converted(NamedTuple):
    """Result of a conversion: the written file, its circuit, and notes."""

    path: Path
    circuit: Circuit
    notes: Sequence[str]
    """Notes for the user, a sentence each: the size, and which parts of the other tool's file have no place in a circuit file."""


def convert_file(path: Path, settings: ConversionSettings, progress: ProgressDisplay | None = None) -> Converted:
    """Read a circuit of another tool and write it as a circuit file, or with `to` the other way.

    progress: shows how much of the weights is hashed. Raises UserError for a file that cannot be read, is of another model, or
    keeps nothing, and where the output exists.
    """
    return _write_other(path, settings) if settings.to else _read_other(path, settings, progress)


def _output(path: Path, settings: ConversionSettings, suffix: str) -> Path:
    output = Path(settings.output) if settings.output else path.with_suffix(suffix)
    check_name(str(output), "--output")
    if suffix and output.suffix.lower() != suffix:
        raise UserError(f"--output {output}: the file is of the kind {suffix}; name it {output.with_suffix(suffix)}")
    if output.exists() and (suffix or not output.is_dir()):
        raise UserError(f"{output}: exists already; move it, or name another file with --output")
    return output


def _read_other(path: Path, settings: ConversionSettings, progress: ProgressDisplay | None) -> Converted:
    data = _parse(path)
    source_format = recognise(data, str(path))
    output = _output(path, settings, ".safetensors")
    shapes = skeleton(settings.model).shapes
    assert source_format.read is not None, "only such formats recognise a file"
    kept = source_format.read(data, shapes, str(path))
    if not kept.nodes:
        raise UserError(f"{path}: keeps no head and no MLP, so there is no circuit; {source_format.if_empty}")
    made = masks_of_nodes(kept.nodes, shapes) if kept.leaves is None else complete_masks(kept.leaves, shapes)
    hashes = fingerprint(settings.model, progress)
    rule = source_format.rule if kept.leaves is not None else f"{source_format.rule} {COMMON_RULE}"
    metadata = model_metadata(settings.model, hashes, shapes) | {
        "ablation": settings.ablation,
        "granularities": json.dumps(list(made)),
        "operation": f"converted from {source_format.name}: {rule}",
        "converted_file": path.name,
        "converted_sha256": file_sha256(path),
        "versions": json.dumps(versions()),
    }
    circuit = Circuit(made, {}, metadata, extra=kept.extra)
    circuit.save(output)
    unhashed = (
        []
        if hashes["weights"]
        else ["the model's weights are not here, so evaluate cannot check that they are the same"]
    )
    notes = [f"note: {note}" for note in [*kept.notes, *unhashed]]
    return Converted(output, circuit, [_size(source_format, circuit, shapes, kept.leaves is None), *notes])


def _write_other(path: Path, settings: ConversionSettings) -> Converted:
    """Write a circuit file of this project in another tool's format."""
    assert settings.to is not None
    chosen, circuit = written_format(settings.to), Circuit.load(path)
    assert chosen.write is not None, "only such formats are listed"
    output = _output(path, settings, chosen.suffix)
    if settings.names_model:
        frozen = skeleton(settings.model)
        shapes, config = list(frozen.shapes), frozen.model.config
        widths = {name: [g.width(shape) for shape in shapes] for name, g in GRANULARITIES.items()}
        if any(widths[name] != rows for name, rows in json.loads(circuit.metadata["widths"]).items()):
            raise UserError(
                f"{path}: has other widths than {settings.model.path}; name the model it was found in with --model.path"
            )
    else:
        shapes, config = shapes_of(json.loads(circuit.metadata["widths"])), None
    graph = graph_of(
        circuit,
        shapes,
        "" if config is None else config.model_type,
        parallel=config is not None and is_parallel(config),
        source=str(path),
    )
    notes = chosen.write(graph, output)
    if config is None and chosen.to in _WITH_EDGES:
        notes = [*notes, "MLPs are taken to read the heads of their layer; --model.path tells where they do not"]
    if chosen.read is not None and circuit.ablation_name != ConversionSettings().ablation:
        name = circuit.ablation_name
        notes = [
            *notes,
            f"the format does not say that the circuit is under {name} ablation; read it back with --ablation {name}",
        ]
    size = f"{chosen.name}: {int(graph.heads.sum())} heads and {int(graph.mlps.sum())} MLPs are kept"
    return Converted(output, circuit, [size, *(f"note: {note}" for note in notes)])


def _size(source_format: ConvertFormat, circuit: Circuit, shapes: Sequence[LayerShape], whole: bool) -> str:
    kept, nodes = circuit.sizes(), node_counts(shapes, ("head", "mlp"))
    return (
        f"{source_format.name}: {kept['head']} of {nodes['head']} heads and {kept['mlp']} of {nodes['mlp']} MLPs are kept, with "
        f"{'all their neurons ' if whole else ''}{kept['total']} of {nodes['total']}{'' if whole else ' neurons'}, under "
        f"{circuit.ablation_name} ablation"
    )


def _parse(path: Path) -> Any:
    """Parse a file. Raises UserError naming what the file is if it is none that is read."""
    try:
        return parse_file(path)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_describe_other(path, error)}") from error


def _describe_other(path: Path, error: Exception) -> str:
    """Describe a file that is not JSON, and what to do with it."""
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                return (
                    f"a circuit file of the format {FORMAT} already; evaluate, compare and report take it as it is, and --to NAME "
                    "writes it for another tool"
                )
            return f"a safetensors file that holds no circuit; {KNOWN_FORMATS}"
    except Exception:  # whatever safetensors raises: it is no such file
        if path.suffix == ".jsonl":
            return f"lines of JSON, such as pairs or text, and no circuit; name pairs with --task.path in prune. {KNOWN_FORMATS}"
        return f"not readable as JSON ({error}); copy it again: {KNOWN_FORMATS}"
