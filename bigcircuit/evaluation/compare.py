"""`bigcircuit compare`: measure what circuits share, and make new circuits of them. Loads no model."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from rich import box
from rich.table import Table

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.combine import combined_metadata, other_model
from bigcircuit.circuit.overlap import OPERATIONS, frequency, overlap, overlap_sentence, stability
from bigcircuit.circuit.validate import shapes_of
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import ComparisonSettings
from bigcircuit.io.files import file_sha256
from bigcircuit.io.provenance import versions
from bigcircuit.model.granularity import COUNTED, GRANULARITIES, LEAVES, LayerShape, node_counts
from bigcircuit.report.run_page import write_run_page
from bigcircuit.results.comparison import ComparedCircuit, Comparison
from bigcircuit.results.locate import check_named_once, circuit_files, name_of, run_of, unique
from bigcircuit.results.result_files import save_result
from bigcircuit.runtime.console import PlainConsole

COMPARISON_FILE = "comparison.json"


class CircuitFile(NamedTuple):
    """A circuit file that is compared."""

    name: str
    """Unique among the compared files."""
    path: Path
    circuit: Circuit


def compare_circuits(names: Sequence[str], settings: ComparisonSettings, console: PlainConsole) -> Comparison:
    """Compare the circuits of run folders (all members) and files, write comparison.json and the circuits to be saved.

    Raises UserError for fewer than two circuits, or circuits of models that differ.
    """
    files = _open(names)
    shapes = _one_model(files)
    nodes = node_counts(shapes, list(GRANULARITIES))
    folder = Path(settings.output) if settings.output else run_of(files[0].path) or files[0].path.parent
    made = {name: circuit for name in settings.save if (circuit := _combined(name, files, shapes)) is not None}
    saved = {name: folder / f"{name}.safetensors" for name in made}
    for name, circuit in made.items():
        _check_free(saved[name], circuit)
    for name, circuit in made.items():
        circuit.save(saved[name])
    common = [name for name in GRANULARITIES if all(name in file.circuit.masks for file in files)]
    masks = {name: [file.circuit.masks[name] for file in files] for name in common}
    neurons = [_neurons(file) for file in files]
    similar = {name: stability(kept, nodes[name]) for name, kept in [*masks.items(), ("total", neurons)]}
    first = files[0].circuit.metadata
    result = Comparison(
        model={
            "name": first.get("model", ""),
            "config": first.get("model_config_sha256", ""),
            "weights": first.get("model_weights_sha256", ""),
        },
        nodes=nodes,
        circuits=[_describe(file) for file in files],
        overlap={name: overlap(kept, nodes[name]) for name, kept in masks.items()}
        | {"total": overlap(neurons, nodes["total"])},
        stability=similar,
        frequency={name: frequency(kept, name, shapes) for name, kept in masks.items()},
        saved={name: str(path) for name, path in saved.items()},
        verdict=overlap_sentence(len(files), similar["head"], similar["total"]),
        command=sys.argv,
        versions=versions(),
    )
    save_result(result, folder / COMPARISON_FILE)
    console.print(overlap_table(result))
    console.print(result.verdict)
    for name in [name for name in settings.save if name not in saved]:
        console.print(f"{name}: no node is left, so there is no circuit to save")
    console.print("; ".join([str(folder / COMPARISON_FILE), *result.saved.values(), write_run_page(folder)]))
    return result


def _open(names: Sequence[str]) -> list[CircuitFile]:
    """Open the circuits of run folders and files, each under a unique name. Raises UserError for fewer than two."""
    found: dict[str, CircuitFile] = {}
    for name in names:
        path = Path(name)
        for file in circuit_files(path) if path.is_dir() else [path]:
            label = unique(name_of(path if path.is_dir() else run_of(path), file), found)
            found[label] = CircuitFile(label, file, Circuit.load(file))
    check_named_once(file.path for file in found.values())
    if len(found) < 2:
        raise UserError("compare needs two circuits or more: bigcircuit compare runs/a runs/b")
    return list(found.values())


def _one_model(files: Sequence[CircuitFile]) -> list[LayerShape]:
    """Read the layer shapes. Raises UserError unless all circuits are of one model."""
    first = files[0]
    for other in files[1:]:
        if what := other_model(first.circuit.metadata, other.circuit.metadata):
            raise UserError(
                f"{other.path}: is of a model with other {what} than {first.path}; compare circuits of one model"
            )
        if [mask.shape for mask in _leaf_masks(first)] != [mask.shape for mask in _leaf_masks(other)]:
            raise UserError(
                f"{other.path}: is of a model of other widths than {first.path}; compare circuits of one model"
            )
    return shapes_of(json.loads(first.circuit.metadata["widths"]))


def _leaf_masks(file: CircuitFile) -> list[torch.Tensor]:
    masks = file.circuit.masks
    return [masks[LEAVES[site]] for site in COUNTED if LEAVES[site] in masks]


def _neurons(file: CircuitFile) -> torch.Tensor:
    """Masks of the neurons that `total` counts side by side, bool [L, n]."""
    return torch.cat(_leaf_masks(file), dim=1)


def _describe(file: CircuitFile) -> ComparedCircuit:
    metadata = file.circuit.metadata
    return ComparedCircuit(
        name=file.name,
        file=str(file.path),
        sha256=file_sha256(file.path),
        task=metadata.get("task", ""),
        found_under=file.circuit.ablation_name,
        seed=metadata.get("seed", ""),
        kept=file.circuit.sizes(),
    )


def _combined(operation: str, files: Sequence[CircuitFile], shapes: Sequence[LayerShape]) -> Circuit | None:
    """Make the circuit of an operation on the files; None if it would be empty."""
    masks = OPERATIONS[operation]([file.circuit.masks for file in files], shapes)
    if not any(mask.any() for mask in masks.values()):
        return None
    parents = [{"name": file.name, "sha256": file_sha256(file.path)} for file in files]
    known = [file.circuit.metadata for file in files]
    return Circuit(masks, {}, combined_metadata(operation, known, parents, list(files[0].circuit.masks)))


def _check_free(path: Path, circuit: Circuit) -> None:
    """Raise UserError if a file is in the way that is not this circuit made of the same files; it may be one of them."""
    if not path.exists():
        return
    with suppress(UserError):
        there = Circuit.load(path)
        if there == circuit and there.metadata.get("parents") == circuit.metadata["parents"]:
            return
    raise UserError(f"{path}: exists already and is another circuit; move it, or name another folder with --output")


def overlap_table(result: Comparison) -> Table:
    """Lay out what all circuits share, by granularity, and the Jaccard index over pairs of circuits."""
    several = len(result.circuits) > 2
    title = (
        ("Jaccard of pairs of " if several else "Jaccard of ")
        + ", ".join(circuit.name for circuit in result.circuits[:6])
        + ", ..." * (len(result.circuits) > 6)
    )
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    pairs = ["Jaccard", "lowest", "chance"] if several else ["Jaccard", "chance"]
    for index, heading in enumerate(["", "nodes", "kept", "in all", "in any", *pairs]):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for name, shared in result.overlap.items():
        pairwise = result.stability[name]
        values = (pairwise.mean, pairwise.min, pairwise.chance) if several else (pairwise.mean, pairwise.chance)
        cells = [str(result.nodes[name]), _sizes(shared.sizes), str(shared.intersection), str(shared.union)]
        table.add_row("neurons" if name == "total" else name, *cells, *(f"{value:.3f}" for value in values))
    return table


def _sizes(sizes: Sequence[int]) -> str:
    """Format the sizes of all circuits: both of two, a range of more."""
    if len(sizes) < 3:
        return ", ".join(map(str, sizes))
    return str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)}-{max(sizes)}"
