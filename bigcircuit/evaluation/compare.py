"""`bigcircuit compare`: what circuits share, and new circuits made of them. Loads no model."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.overlap import OPERATIONS, frequency, overlap, overlap_sentence, stability
from bigcircuit.circuit.validate import shapes_of
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import ComparisonSettings
from bigcircuit.gates.members import node_counts
from bigcircuit.io.files import file_sha256
from bigcircuit.io.provenance import versions
from bigcircuit.model.granularity import GRANULARITIES, LayerShape
from bigcircuit.results.comparison import ComparedCircuit, Comparison
from bigcircuit.results.evaluation import save_result
from bigcircuit.results.locate import circuit_files, name_of, run_of, unique

FILE = "comparison.json"


class Compared(NamedTuple):
    """One of the circuits."""

    name: str
    path: Path
    circuit: Circuit


def compare_circuits(names: Sequence[str], settings: ComparisonSettings, console: Console) -> Comparison:
    """Compare the circuits of run folders (all members) and files, write comparison.json and the circuits to be saved.

    Raises UserError for fewer than two circuits, or circuits of models that differ.
    """
    circuits = _open(names)
    shapes = _one_model(circuits)
    nodes = node_counts(shapes, list(GRANULARITIES))
    folder = Path(settings.output) if settings.output else run_of(circuits[0].path) or circuits[0].path.parent
    made = {name: _save(name, circuits, shapes, folder) for name in settings.save}
    common = [name for name in GRANULARITIES if all(name in one.circuit.masks for one in circuits)]
    masks = {name: [one.circuit.masks[name] for one in circuits] for name in common}
    neurons = [_neurons(one) for one in circuits]
    similar = {name: stability(found, nodes[name]) for name, found in [*masks.items(), ("total", neurons)]}
    first = circuits[0].circuit.metadata
    result = Comparison(
        model={
            "name": first.get("model", ""),
            "config": first.get("model_config_sha256", ""),
            "weights": first.get("model_weights_sha256", ""),
        },
        nodes=nodes,
        circuits=[_described(one) for one in circuits],
        overlap={name: overlap(found, nodes[name]) for name, found in masks.items()}
        | {"total": overlap(neurons, nodes["total"])},
        stability=similar,
        frequency={name: frequency(found, name, shapes) for name, found in masks.items()},
        saved={name: str(path) for name, path in made.items() if path is not None},
        verdict=overlap_sentence(len(circuits), similar["head"], similar["total"]),
        command=sys.argv,
        versions=versions(),
    )
    save_result(result, folder / FILE)
    console.print(overlap_table(result))
    console.print(result.verdict, markup=False)
    for name in made.keys() - result.saved.keys():
        console.print(f"{name}: no node is left, so there is no circuit to save", markup=False)
    from bigcircuit.report.render import render_run  # its figures take a second to load

    console.print("; ".join([str(folder / FILE), *result.saved.values(), f"see {render_run(folder)}"]), markup=False)
    return result


def _open(names: Sequence[str]) -> list[Compared]:
    found: dict[str, Compared] = {}
    for name in names:
        path = Path(name)
        for file in circuit_files(path) if path.is_dir() else [path]:
            label = unique(name_of(path if path.is_dir() else run_of(path), file), found)
            found[label] = Compared(label, file, Circuit.load(file))
    if len(found) < 2:
        raise UserError("compare needs two circuits or more: bigcircuit compare runs/a runs/b")
    return list(found.values())


def _one_model(circuits: Sequence[Compared]) -> list[LayerShape]:
    """Widths of the layers. Raises UserError unless all circuits are of one model."""
    first = circuits[0]
    for other in circuits[1:]:
        for key, what in (("model_weights_sha256", "weights"), ("model_config_sha256", "config")):
            mine, theirs = first.circuit.metadata.get(key), other.circuit.metadata.get(key)
            if mine and theirs and mine != theirs:
                raise UserError(
                    f"{other.path}: is of a model with other {what} than {first.path}; compare circuits of one model"
                )
        if [m.shape for m in _leaves(first)] != [m.shape for m in _leaves(other)]:
            raise UserError(
                f"{other.path}: is of a model of other widths than {first.path}; compare circuits of one model"
            )
    return shapes_of(json.loads(first.circuit.metadata["widths"]))


def _leaves(one: Compared) -> list[torch.Tensor]:
    return [one.circuit.masks[name] for name in ("attention_neuron", "mlp_neuron")]


def _neurons(one: Compared) -> torch.Tensor:
    return torch.cat(_leaves(one), dim=1)


def _described(one: Compared) -> ComparedCircuit:
    known = one.circuit.metadata
    return ComparedCircuit(
        name=one.name,
        file=str(one.path),
        sha256=file_sha256(one.path),
        task=known.get("task", ""),
        found_under=one.circuit.ablation.name,
        seed=known.get("seed", ""),
        kept=one.circuit.sizes(),
    )


def _save(operation: str, circuits: Sequence[Compared], shapes: Sequence[LayerShape], folder: Path) -> Path | None:
    """Write a new circuit made of the others; None if nothing would be in it."""
    masks = OPERATIONS[operation]([one.circuit.masks for one in circuits], shapes)
    if not any(mask.any() for mask in masks.values()):
        return None
    path = folder / f"{operation}.safetensors"
    Circuit(masks, {}, _metadata(operation, circuits)).save(path)
    return path


def _metadata(operation: str, circuits: Sequence[Compared]) -> dict[str, str]:
    """What all circuits have in common, and what it was made of."""
    kept = ("model", "model_revision", "model_config_sha256", "model_weights_sha256", "tokenizer_sha256", "adapter",
            "task", "task_sha256", "ablation", "ablation_data",
            "ablation_data_sha256", "ablation_prompts", "widths")  # fmt: skip
    every = [one.circuit.metadata for one in circuits]
    common = {
        key: every[0][key] for key in kept if all(key in known and known[key] == every[0][key] for known in every)
    }
    parents = [{"name": one.name, "sha256": file_sha256(one.path)} for one in circuits]
    return common | {
        "operation": operation,
        "parents": json.dumps(parents),
        "granularities": json.dumps(list(circuits[0].circuit.masks)),
        "versions": json.dumps(versions()),
    }


def overlap_table(result: Comparison) -> Table:
    """What all circuits share, by granularity, and Jaccard over pairs of circuits."""
    several = len(result.circuits) > 2
    title = (
        ("Jaccard of pairs of " if several else "Jaccard of ")
        + ", ".join(one.name for one in result.circuits[:6])
        + ", ..." * (len(result.circuits) > 6)
    )
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    pairs = ["Jaccard", "lowest", "chance"] if several else ["Jaccard", "chance"]
    for index, heading in enumerate(["", "nodes", "kept", "in all", "in any", *pairs]):
        shown.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for name, one in result.overlap.items():
        found = result.stability[name]
        values = (found.mean, found.min, found.chance) if several else (found.mean, found.chance)
        cells = [str(result.nodes[name]), _sizes(one.sizes), str(one.intersection), str(one.union)]
        shown.add_row("neurons" if name == "total" else name, *cells, *(f"{value:.3f}" for value in values))
    return shown


def _sizes(sizes: Sequence[int]) -> str:
    if len(sizes) < 3:
        return ", ".join(map(str, sizes))
    return str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)}-{max(sizes)}"
