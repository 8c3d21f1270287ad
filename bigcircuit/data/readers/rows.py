"""Read a file or data set into rows, each with its place for error messages."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.data.readers.cells import CsvList, are_ids
from bigcircuit.data.readers.hugging_face import dataset_rows, open_hub, open_saved
from bigcircuit.errors import UserError


class SourceRow(NamedTuple):
    """Record of a file or data set, and its place."""

    values: dict[str, Any]
    """Cells by column."""
    source: str
    """`file:line` in JSONL and CSV (the first line is 1), `file row N` elsewhere (the first row is 0)."""


def read_rows(path: str) -> list[SourceRow]:
    """Read all rows of a JSONL, JSON, CSV or Parquet file, a folder saved by datasets, or `hf://org/name[/config][:split]`.

    Raises UserError naming the file, and the line if there is one.
    """
    if path.startswith("hf://"):
        return _not_empty(path, dataset_rows(path, open_hub(path)))
    file = Path(path)
    if not file.exists():
        raise UserError(f"{path}: no such file; set task.path to a pair file")
    if file.is_dir():
        return _not_empty(path, dataset_rows(path, open_saved(path)))
    if file.suffix.lower() not in _READERS:
        ending = f"the ending {file.suffix}" if file.suffix else "a file without ending"
        raise UserError(f"{path}: cannot read {ending}; use {', '.join(_READERS)} or a folder saved by datasets")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return _not_empty(path, _READERS[file.suffix.lower()](path, content))


def _not_empty(path: str, rows: Iterable[tuple[dict[str, Any], str]]) -> list[SourceRow]:
    found = [SourceRow(*row) for row in rows]
    if not found:
        raise UserError(f"{path}: has no rows; write at least two pairs")
    return found


def _decode(path: str, content: bytes) -> str:
    """Decode a UTF-8 file without the byte order mark that some editors write at its start."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: not UTF-8 (byte {content[error.start]:#04x}); save the file as UTF-8"
        ) from error


def _jsonl(path: str, content: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    # Not splitlines, which also splits at characters that a JSON text may contain.
    for number, line in enumerate(_decode(path, content).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error}); write one object a line") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}:{number}: is {_kind(values)}, not an object; write one object a line")
        yield values, f"{path}:{number}"


def _json(path: str, content: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """Read a file of auto-circuit, an object whose `prompts` is a list of objects, or a plain list of objects."""
    try:
        whole = json.loads(_decode(path, content))
    except (ValueError, RecursionError) as error:
        place = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else path
        raise UserError(f"{place}: not valid JSON ({error}); for one object a line use the ending .jsonl") from error
    prompts = whole.get("prompts") if isinstance(whole, dict) else whole
    if not isinstance(prompts, list):
        raise UserError(
            f'{path}: is {_kind(whole)} without a list "prompts"; for one object a line use the ending .jsonl'
        )
    for index, values in enumerate(prompts):
        if not isinstance(values, dict):
            raise UserError(f"{path} row {index}: is {_kind(values)}, not an object; write a list of objects")
        yield values, f"{path} row {index}"


def _csv(path: str, content: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """Read the rows below a header. A cell that is a JSON list of texts or numbers, such as ["a", "b"], is read as a list."""
    lines = csv.reader(io.StringIO(_decode(path, content), newline=""), strict=True)
    start = 1
    try:
        header = next(lines, [])
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}:1: the header has column {twice!r} more than once; rename one")
        start = lines.line_num + 1
        for cells in lines:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path}:{start}: has {len(cells)} cells and the header {len(header)}; "
                    "put quotes around cells that hold commas"
                )
            if cells:
                yield dict(zip(header, map(_cell, cells), strict=True)), f"{path}:{start}"
            start = lines.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not valid CSV ({error}); close every quote") from error


def _cell(cell: str) -> Any:
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if all(isinstance(item, str) for item in value):
        return value
    return CsvList(value, cell) if are_ids(value) else cell


def _parquet(path: str, content: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow, or write JSONL") from error
    try:
        table = parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole Parquet file; write it again") from error
    for index, values in enumerate(table.to_pylist()):
        yield values, f"{path} row {index}"


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


_READERS: dict[str, Callable[[str, bytes], Iterator[tuple[dict[str, Any], str]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
