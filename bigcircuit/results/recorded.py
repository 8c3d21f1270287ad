"""Circuits that evaluation.json or comparison.json records: their files, even if moved, and what the JSON file holds of them."""

from collections.abc import Iterator
from pathlib import Path

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.metadata import HASH_KEYS
from bigcircuit.io.files import Json, file_sha256


def file_of(record: Json, folder: Path) -> Path | None:
    """Find the circuit file of a record by the recorded hash; None if there is no such file any more.

    folder: of the JSON file. The recorded path is tried first, relative to the current folder; then the path with ever fewer of
    its first parts, relative to the JSON file's folder and all folders above it.
    """
    return next((path for path in _places(Path(record["file"]), folder) if _has_hash(path, record["sha256"])), None)


def circuit_of(record: Json, folder: Path) -> Circuit | None:
    """Load the circuit of a record from its file, as `file_of` finds it; None if there is no such file any more."""
    found = file_of(record, folder)
    return None if found is None else Circuit.load(found)


def _places(file: Path, folder: Path) -> Iterator[Path]:
    yield file
    parts = file.parts[1:] if file.is_absolute() else file.parts
    for start in range(len(parts)):
        for above in (folder.resolve(), *folder.resolve().parents):
            yield above.joinpath(*parts[start:])


def _has_hash(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest


def row_of(record: Json) -> Json:
    """Make a row of summary.json from a record; scores are those under the ablation that the circuit was found under."""
    under = record.get("ablations", {})
    chosen: Json = under.get(record["found_under"]) or next(iter(under.values()), {"circuit": {}})
    row = {"member": record["name"], "circuit": record["file"], "kept": record["kept"], "seed": record["seed"]}
    row |= {key: record[key] for key in ("parameters_kept", "parameters") if key in record}
    return row | ({"scores": chosen["circuit"]} if chosen["circuit"] else {})


def about(record: Json, content: Json) -> Json:
    """Describe model, task, pairs and settings of a record. content: of the JSON file that holds the record."""
    model = content["model"]
    found = {"model": model.get("path") or model.get("name", ""), "task": record["task"]}
    if "tasks" not in content:
        return found
    task = content["tasks"][record["task"]]
    own = {"task": task["name"], "pairs": task["pairs"], "left_out": task["left_out"]}
    return found | own | {"evaluation": content["settings"]}


def metadata_of(record: Json, content: Json, known: Json) -> dict[str, str]:
    """Make the metadata of a circuit whose file is gone. content: of the JSON file; known: what `about` returned."""
    found = {"model": known["model"], "task": known["task"], "ablation": record["found_under"]}
    return found | {key: content["model"][part] for part, key in HASH_KEYS.items() if content["model"].get(part)}
