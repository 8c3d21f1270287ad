"""Files of a run, of an evaluation or comparison, or one circuit file, read for a page. No model is loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.errors import UserError
from bigcircuit.io.files import Json
from bigcircuit.io.run_dir import read_metrics
from bigcircuit.model.granularity import GRANULARITIES, count_total
from bigcircuit.results import recorded
from bigcircuit.results.locate import name_of, run_of
from bigcircuit.results.result_files import read_result
from bigcircuit.results.shape import Examples, Setup, Summary, check_shape, read_shaped

_REMEDY = "restore it from a copy or run again"


@dataclass(frozen=True)
class RunCircuit:
    """A circuit of a run, or a circuit file, with what is known about it."""

    name: str
    file: str
    """Path relative to the run folder, or as it was given."""
    circuit: Circuit | None
    """None where the circuit file is gone, so that only evaluation.json or comparison.json describes the circuit."""
    place: Path | None
    """The circuit file, from the current folder or absolute; None where it is gone."""
    row: Json = field(default_factory=dict)
    """Row of summary.json; without a summary, what the circuit file or evaluation.json holds of the same."""
    metadata: Json = field(default_factory=dict)
    """Metadata of the circuit file: hashes of model, tokenizer and task; without the file, those that a JSON file records."""
    about: Json = field(default_factory=dict)
    """`model` and `task` as they were given; of a run or an evaluation also `pairs`, `left_out`, the run's `config` and the
    `evaluation`'s settings."""
    examples: Sequence[Json] = ()
    """Predictions on a few held-out pairs."""
    metrics: Sequence[Json] = ()
    """The member's lines of metrics.jsonl."""


@dataclass(frozen=True)
class RunSource:
    """A run folder, a folder with an evaluation or a comparison, or a circuit file, as it was read."""

    path: Path
    name: str
    members: Sequence[RunCircuit]
    summary: Json | None = None
    setup: Json | None = None
    """config.json: `config`, `command`, `versions`."""
    evaluation: Json | None = None
    comparison: Json | None = None

    @property
    def nodes(self) -> dict[str, int]:
        """Number of nodes of the model by granularity, and as `total` of site neurons."""
        if (circuit := self.members[0].circuit) is not None:
            return nodes_of_model(circuit)
        found = self.evaluation or self.comparison
        assert found is not None
        return dict(found["nodes"])

    @property
    def compared(self) -> dict[str, Circuit]:
        """The circuits of comparison.json by name; empty without such a file, or if a circuit file is gone."""
        named = self.comparison["circuits"] if self.comparison else []
        found = {one["name"]: recorded.circuit_of(one, self.path) for one in named}
        kept = {name: circuit for name, circuit in found.items() if circuit is not None}
        return kept if len(kept) == len(found) else {}


def open_source(path: Path, summary: Json | None = None) -> RunSource:
    """Read a finished run folder, a folder with an evaluation or a comparison, or a circuit file.

    summary: content of summary.json where the file is not written yet. Raises UserError naming the file that is missing or
    damaged.
    """
    if not path.is_dir():
        return _circuit_file(path)
    summary = _json(path / "summary.json", Summary) if summary is None else summary
    found = {
        name: read_result(file) for name in ("evaluation", "comparison") if (file := path / f"{name}.json").exists()
    }
    if summary is None:
        return _without_run(path, found)
    shown = (_json(path / "examples.json", Examples) or {"members": []})["members"]
    setup, metrics = _json(path / "config.json", Setup), read_metrics(path / "metrics.jsonl")
    check_shape(metrics, list[dict[str, float | None]], str(path / "metrics.jsonl"), _REMEDY)
    about = {key: summary[key] for key in ("model", "task", "pairs", "left_out")}
    about |= {"config": setup["config"] if setup else {}}
    about |= {"evaluation": found["evaluation"]["settings"]} if "evaluation" in found else {}
    members = []
    for index, row in enumerate(summary["members"]):
        place = path / row["circuit"]
        circuit = Circuit.load(place)
        examples = shown[index] if index < len(shown) else ()
        mine = [line for line in metrics if line.get("member") == index]
        members.append(
            RunCircuit(
                name=str(row["member"]),
                file=row["circuit"],
                circuit=circuit,
                place=place,
                row=row,
                metadata=circuit.metadata,
                about=about,
                examples=examples,
                metrics=mine,
            )
        )
    return RunSource(path, path.resolve().name, members, summary, setup, **found)


def _without_run(path: Path, found: Mapping[str, Json]) -> RunSource:
    """Read a folder that holds no run but an evaluation or a comparison of circuits elsewhere."""
    if not found:
        raise UserError(f"{path}: has no summary.json, so no finished run; run the same `bigcircuit prune` again")
    content = found.get("evaluation") or found["comparison"]
    members = [_recorded(one, content, path) for one in content["circuits"]]
    return RunSource(path, path.resolve().name, members, **found)


def _recorded(record: Json, content: Json, folder: Path) -> RunCircuit:
    """Read a circuit that evaluation.json or comparison.json records. content: of the JSON file; folder: that holds it."""
    place = recorded.file_of(record, folder)
    circuit = Circuit.load(place) if place else None
    about = recorded.about(record, content)
    return RunCircuit(
        name=record["name"],
        file=record["file"],
        circuit=circuit,
        place=place,
        row={"scores": {}, **(_row(Path(record["file"]), circuit) if circuit else {}), **recorded.row_of(record)},
        metadata=circuit.metadata if circuit else recorded.metadata_of(record, content, about),
        about=about,
        examples=record.get("examples", ()),
    )


def _circuit_file(path: Path) -> RunSource:
    """Read one circuit file."""
    circuit = Circuit.load(path)
    name = name_of(run_of(path), path)
    member = RunCircuit(
        name=name,
        file=path.name,
        circuit=circuit,
        place=path,
        row=_row(path, circuit),
        metadata=circuit.metadata,
        about={key: circuit.metadata.get(key, "") for key in ("model", "task")},
    )
    return RunSource(path, name, [member])


def _row(path: Path, circuit: Circuit) -> dict[str, Any]:
    """Make a row of summary.json from the metadata of a circuit file."""
    found = circuit.metadata
    scores = json.loads(found.get("scores", "{}"))
    return {
        "member": path.stem,
        "circuit": path.name,
        "kept": circuit.sizes(),
        "seed": found.get("seed", ""),
        "best_step": found.get("step", ""),
        "targets": json.loads(found.get("targets", "{}")),
        "scores": scores.get(found.get("ablation"), scores if "kl" in scores else {}),
    }


def _json(path: Path, shape: type[BaseModel]) -> Any:
    return read_shaped(path, _REMEDY, shape) if path.exists() else None


def node_widths(circuit: Circuit) -> dict[str, list[int]]:
    """Count the nodes of every granularity in every layer of the model; masks are as wide as their widest layer.

    Without widths in the file's metadata all layers count as that wide.
    """
    known = json.loads(circuit.metadata.get("widths", "{}"))
    return {name: known.get(name) or [mask.shape[1]] * len(mask) for name, mask in circuit.masks.items()}


def nodes_of_model(circuit: Circuit) -> dict[str, int]:
    """Count the nodes of the model of a circuit by granularity, and as `total` its site neurons."""
    found = {name: sum(widths) for name, widths in node_widths(circuit).items() if name in GRANULARITIES}
    return found | {"total": count_total(found)}
