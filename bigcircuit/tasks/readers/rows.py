"""Containers: turn a file or data set into rows, each with the place a person would look for it at."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.errors import UserError


class Row(NamedTuple):
    """One record and where it is."""

    values: dict[str, Any]
    source: str
    """`file:line` for text files (1 is the first line), `file row N` for the others (0 is the first row)."""


def read_rows(path: str) -> list[Row]:
    """All rows of a JSONL, JSON, CSV or Parquet file, a folder saved by `datasets`, or `hf://org/name[:split]`.

    Raises UserError naming the file, and the line where there is one.
    """
    if path.startswith("hf://"):
        return _dataset(path, _hub(path))
    file = Path(path)
    if not file.exists():
        raise UserError(f"{path}: no such file; set task.path to a pair file")
    if file.is_dir():
        return _dataset(path, _saved(file))
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if file.suffix not in readers:
        raise UserError(
            f"{path}: cannot read {file.suffix or 'a file without ending'}; use {', '.join(readers)} or a data set folder"
        )
    try:
        rows = list(readers[file.suffix](file))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not rows:
        raise UserError(f"{path}: the file has no rows; write at least two pairs")
    return rows


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error}); one object a line is expected") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}:{number}: is a {type(values).__name__}; one JSON object a line is expected")
        yield Row(values, f"{path}:{number}")


def _json(path: Path) -> Iterator[Row]:
    """auto-circuit's file: an object whose `prompts` is a list of objects; a plain list of objects is read too."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    prompts = content.get("prompts") if isinstance(content, dict) else content
    if not isinstance(prompts, list):
        raise UserError(
            f'{path}: expected {{"prompts": [...]}} or a list of objects; one object a line needs the ending .jsonl'
        )
    for index, values in enumerate(prompts):
        if not isinstance(values, dict):
            raise UserError(f"{path} row {index}: is a {type(values).__name__}; an object is expected")
        yield Row(values, f"{path} row {index}")


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for values in reader:
                if None in values or None in values.values():
                    raise UserError(
                        f"{path}:{reader.line_num}: has another number of cells than the header; quote cells that hold commas"
                    )
                yield Row(values, f"{path}:{reader.line_num}")
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Parquet file; write it again") from error
    for index, values in enumerate(table.to_pylist()):
        yield Row(values, f"{path} row {index}")


def _saved(path: Path) -> Any:
    from datasets import load_from_disk

    try:
        return load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{path}: a folder, but not one saved by datasets' save_to_disk; name a pair file") from error


def _hub(path: str) -> Any:
    from datasets import load_dataset

    name, _, split = path.removeprefix("hf://").partition(":")
    try:
        return load_dataset(name, split=split or None)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: the data set cannot be opened ({first})") from error


def _dataset(path: str, data: Any) -> list[Row]:
    """Rows of a Dataset, or of a DatasetDict whose split names become the `split` column."""
    parts = dict(data) if isinstance(data, dict) else {None: data}
    rows = []
    for name, part in parts.items():
        given = {} if name is None else {"split": name}
        rows += [
            Row({**given, **values}, f"{path} {name or ''} row {i}".replace("  ", " ")) for i, values in enumerate(part)
        ]
    if not rows:
        raise UserError(f"{path}: the data set has no rows; write at least two pairs")
    return rows
