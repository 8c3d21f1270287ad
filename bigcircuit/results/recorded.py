"""Circuits that evaluation.json or comparison.json name: their files, wherever they lie by now, and what is known without."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.io.files import file_sha256

Json = Mapping[str, Any]


def circuit_of(record: Json, folder: Path) -> Circuit | None:
    """The circuit of a record, from a file whose hash is the recorded one; None if there is no such file any more.

    folder: that of the JSON file. The recorded path is tried as it is, which is right in the folder the command was given in,
    then with ever fewer of its first parts from the JSON file's folder and those above it.
    """
    found = next((path for path in _places(Path(record["file"]), folder) if _is(path, record["sha256"])), None)
    return None if found is None else Circuit.load(found)


def _places(file: Path, folder: Path) -> Iterator[Path]:
    yield file
    parts = file.parts[1:] if file.is_absolute() else file.parts
    for start in range(len(parts)):
        for above in (folder.resolve(), *folder.resolve().parents):
            yield above.joinpath(*parts[start:])


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest


def row_of(record: Json) -> Json:
    """A record as a row of summary.json; scores are those under the ablation that the circuit was found under."""
    under = record.get("ablations", {})
    scores = (under.get(record["found_under"]) or next(iter(under.values()), {"circuit": {}}))["circuit"]
    row = {"member": record["name"], "circuit": record["file"], "kept": record["kept"], "seed": record["seed"]}
    row |= {key: record[key] for key in ("parameters_kept", "parameters") if key in record}
    return row | ({"scores": scores} if scores else {})


def about(record: Json, content: Json) -> Json:
    """Model, task, pairs and settings as the file that holds the record says."""
    model = content["model"]
    found = {"model": model.get("path") or model.get("name", ""), "task": record["task"]}
    if "tasks" not in content:
        return found
    task = content["tasks"][record["task"]]
    own = {"task": task["name"], "pairs": task["pairs"], "left_out": task["left_out"]}
    return found | own | {"evaluation": content["settings"]}


def metadata_of(record: Json, content: Json, known: Json) -> dict[str, str]:
    """What the files say of a circuit that is not at hand, under the names of a circuit file's metadata."""
    found = {"model": known["model"], "task": known["task"], "ablation": record["found_under"]}
    return found | {f"model_{part}_sha256": content["model"][part] for part in ("config", "weights", "tokenizer")
                    if content["model"].get(part)}  # fmt: skip
