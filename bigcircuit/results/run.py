"""What a page is made from: the files of a run, or a circuit file alone. No model is loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import GRANULARITIES
from bigcircuit.results import recorded
from bigcircuit.results.evaluation import read_result
from bigcircuit.results.locate import name_of, run_of

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RunCircuit:
    """One circuit of a run, or one circuit file."""

    name: str
    file: str
    """Path relative to the run folder, or as it was given."""
    circuit: Circuit | None
    """None where only evaluation.json or comparison.json knows it, because its file is gone."""
    row: Json = field(default_factory=dict)
    """Its row of summary.json; what the circuit file, or evaluation.json, says where there is none."""
    metadata: Json = field(default_factory=dict)
    """Of the circuit file: hashes of model, tokenizer and task; what is known of them where it is gone."""
    about: Json = field(default_factory=dict)
    """`model` and `task` as they were given; of a run or an evaluation also `pairs`, `left_out`, the run's `config` and the
    `evaluation`'s settings."""
    examples: Sequence[Json] = ()
    """Predictions on a few held-out pairs."""
    metrics: Sequence[Json] = ()
    """Its lines of metrics.jsonl."""


@dataclass(frozen=True)
class RunSource:
    """A run folder, or a circuit file."""

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
        """Nodes of the model by granularity, and as `total` site neurons."""
        if (circuit := self.members[0].circuit) is not None:
            return nodes(circuit)
        found = self.evaluation or self.comparison
        assert found is not None
        return dict(found["nodes"])

    @property
    def compared(self) -> dict[str, Circuit]:
        """The circuits of comparison.json by name; none if there is none, or if a file of theirs is gone."""
        named = self.comparison["circuits"] if self.comparison else []
        found = {one["name"]: recorded.circuit_of(one, self.path) for one in named}
        kept = {name: circuit for name, circuit in found.items() if circuit is not None}
        return kept if len(kept) == len(found) else {}


def open_source(path: Path, summary: Json | None = None) -> RunSource:
    """Read a finished run folder, a folder with an evaluation or a comparison, or a circuit file.

    summary: what summary.json is going to hold. Raises UserError naming the file that is missing or damaged.
    """
    if not path.is_dir():
        return _file(path)
    summary = _json(path / "summary.json") if summary is None else summary
    found = {
        name: read_result(file) for name in ("evaluation", "comparison") if (file := path / f"{name}.json").exists()
    }
    if summary is None:
        return _apart(path, found)
    shown = (_json(path / "examples.json") or {"members": []})["members"]
    setup, metrics = _json(path / "config.json"), read_metrics(path / "metrics.jsonl")
    about = {key: summary[key] for key in ("model", "task", "pairs", "left_out")}
    about |= {"config": setup["config"] if setup else {}}
    about |= {"evaluation": found["evaluation"]["settings"]} if "evaluation" in found else {}
    members = []
    for index, row in enumerate(summary["members"]):
        circuit = Circuit.load(path / row["circuit"])
        examples = shown[index] if index < len(shown) else ()
        mine = [line for line in metrics if line.get("member") == index]
        members.append(
            RunCircuit(str(row["member"]), row["circuit"], circuit, row, circuit.metadata, about, examples, mine)
        )
    return RunSource(path, path.resolve().name, members, summary, setup, **found)


def _apart(path: Path, found: Mapping[str, Json]) -> RunSource:
    """A folder that holds no run but what `evaluate` or `compare` found out about circuits elsewhere."""
    if not found:
        raise UserError(f"{path}: has no summary.json, so no finished run; run the same `bigcircuit prune` again")
    content = found.get("evaluation") or found["comparison"]
    members = [_recorded(one, content, path) for one in content["circuits"]]
    return RunSource(path, path.resolve().name, members, **found)


def _recorded(record: Json, content: Json, folder: Path) -> RunCircuit:
    circuit = recorded.circuit_of(record, folder)
    said = _row(Path(record["file"]), circuit) if circuit else {"scores": {}}
    about = recorded.about(record, content)
    metadata = circuit.metadata if circuit else recorded.metadata_of(record, content, about)
    row = said | recorded.row_of(record)
    return RunCircuit(record["name"], record["file"], circuit, row, metadata, about, record.get("examples", ()))


def _file(path: Path) -> RunSource:
    circuit = Circuit.load(path)
    name = name_of(run_of(path), path)
    about = {key: circuit.metadata.get(key, "") for key in ("model", "task")}
    return RunSource(path, name, [RunCircuit(name, path.name, circuit, _row(path, circuit), circuit.metadata, about)])


def _row(path: Path, circuit: Circuit) -> dict[str, Any]:
    """What a circuit file says of itself, as a row of summary.json."""
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


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON; restore it from a copy or run again") from error


def read_metrics(path: Path) -> list[Json]:
    """The lines of metrics.jsonl; none if there is no such file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # half a line, cut off by a crash
    return rows


def widths(circuit: Circuit) -> dict[str, list[int]]:
    """True width of every granularity in every layer; of the mask itself where the file does not say."""
    said = json.loads(circuit.metadata.get("widths", "{}"))
    return {name: said.get(name) or [mask.shape[1]] * len(mask) for name, mask in circuit.masks.items()}


def nodes(circuit: Circuit) -> dict[str, int]:
    """Nodes of the model by granularity, and as `total` site neurons."""
    found = {name: sum(wide) for name, wide in widths(circuit).items() if name in GRANULARITIES}
    return found | {"total": found["attention_neuron"] + found["mlp_neuron"]}
