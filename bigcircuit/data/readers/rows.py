"""Read a file or data set into rows, each with its place for error messages."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.config.extras import need
from bigcircuit.data.readers.cells import CsvList, are_ids, is_conversation
from bigcircuit.data.readers.hugging_face import dataset_rows, open_hub, open_saved
from bigcircuit.errors import UserError, first_line
from bigcircuit.io.files import parse_json


class SourceRow(NamedTuple):
    """Record of a file or data set, and its place."""

    values: dict[str, Any]
    """Cells by column."""
    source: str
    """`file:line` in JSONL and CSV (the first line is 1), `file row N` elsewhere (the first row is 0)."""


_MOST_ROWS = 250_000
"""Rows of a file. A Parquet file of some kilobytes may hold as many equal rows as one likes."""
_MOST_CHARACTERS = 2**28
"""Characters of all cells of a file, for the same reason."""
_BATCH = 64
"""Rows of a Parquet file that are decoded at once."""
_GIT_LFS = b"version https://git-lfs.github.com/spec/"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_rows(path: str) -> Iterator[SourceRow]:
    """Yield all rows of a JSONL, JSON, CSV or Parquet file, a folder saved by datasets, or `hf://org/name[/config][:split]`.

    Raises UserError naming the file, and the line if there is one.
    """
    if path.startswith("hf://"):
        return _checked(path, dataset_rows(path, open_hub(path)))
    file = Path(path)
    if not file.exists():
        raise UserError(f"{path}: no such file; set task.path to a pair file")
    if file.is_dir():
        return _checked(path, dataset_rows(path, open_saved(path)))
    if file.suffix.lower() not in _READERS:
        ending = f"the ending {file.suffix}" if file.suffix else "a file without ending"
        raise UserError(f"{path}: cannot read {ending}; use {', '.join(_READERS)} or a folder saved by datasets")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if content.startswith(_GIT_LFS):
        raise UserError(f"{path}: is a pointer of git-lfs and not the file itself; fetch the file with git lfs pull")
    return _checked(path, _READERS[file.suffix.lower()](path, content))


def split_of(row: SourceRow, names: Sequence[str]) -> str:
    """Read the split that a row names, any of `names`; empty where it names none.

    Raises UserError for another one, and for a column that is called almost so and has splits.
    """
    split = row.values.get("split")
    if split is None or split == "":
        for name, value in row.values.items():
            if name != "split" and str(name).strip().casefold() in ("split", "splits") and value in names:
                raise UserError(f"{row.source}: column {name!r} has splits, and only a column split is read; rename it")
        return ""
    if split not in names:
        raise UserError(f"{row.source}: split is {split!r:.60}; use {', '.join(names[:-1])} or {names[-1]}")
    return str(split)


def _checked(path: str, rows: Iterator[tuple[dict[str, Any], str]]) -> Iterator[SourceRow]:
    """Yield rows. Raises UserError if there is none, if there are too many, or if one cannot be decoded."""
    count = characters = 0
    while True:
        try:
            values, source = next(rows)
        except StopIteration:
            break
        except UserError:
            raise
        except (ValueError, ArithmeticError, OSError, NotImplementedError) as error:
            # Libraries find out only here what is in a cell. Text is decoded, and dates are computed, when a row is made.
            raise UserError(
                f"{path} row {count}: a cell cannot be read ({first_line(error)[:200]}); text must be UTF-8 and dates between "
                "the years 1 and 9999, mend the row or leave the column out"
            ) from error
        count += 1
        characters += sum(map(_characters, values.values()))
        if count > _MOST_ROWS or characters > _MOST_CHARACTERS:
            raise _too_large(path)
        yield SourceRow(values, source)
    if not count:
        raise UserError(f"{path}: has no rows; write at least two pairs")


def _characters(cell: Any) -> int:
    if isinstance(cell, dict):
        return sum(map(_characters, cell.values()))
    return sum(map(_characters, cell)) if isinstance(cell, list) else len(cell) if isinstance(cell, str | bytes) else 1


def _too_large(path: str) -> UserError:
    return UserError(
        f"{path}: has more than {_MOST_ROWS:,} rows or {_MOST_CHARACTERS:,} characters; keep some thousands of its pairs"
    )


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
            values = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error}); write one object a line") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}:{number}: is {_kind(values)}, not an object; write one object a line")
        yield values, f"{path}:{number}"


def _json(path: str, content: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """Read a file of auto-circuit, an object whose `prompts` is a list of objects, or a plain list of objects."""
    try:
        whole = parse_json(_decode(path, content))
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
    """Read the rows below a header. A cell that is a JSON list of texts, numbers or messages is read as a list."""
    text = _decode(path, content)
    header_line = text.partition("\n")[0]
    # Spreadsheets write semicolons where numbers have a comma.
    mark = next((mark for mark in _SEPARATORS if mark in header_line), ",")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=mark)
    start = 1
    try:
        header = next(lines, [])
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}:1: the header has column {twice!r} more than once; rename one")
        if len(header) > 1 and all(name.startswith(" ") for name in header[1:]):
            raise UserError(
                f"{path}:1: there is a space after each of the {_SEPARATORS[mark]}, which would be part of the cells; remove the "
                "spaces there"
            )
        start = lines.line_num + 1
        for cells in lines:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path}:{start}: has {len(cells)} cells and the header {len(header)}; "
                    f"put quotes around cells that hold {_SEPARATORS[mark]}"
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
    if all(isinstance(item, str) for item in value) or is_conversation(value):
        return value
    return CsvList(value, cell) if are_ids(value) else cell


def _parquet(path: str, content: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    need(f"{path}: reading Parquet", "data", "pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        if file.metadata.num_rows > _MOST_ROWS:
            raise _too_large(path)
        first = 0
        for batch in file.iter_batches(batch_size=_BATCH):
            for index, values in enumerate(_values(batch), first):
                yield values, f"{path} row {index}"
            first += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole Parquet file; write it again") from error


def _values(batch: Any) -> Iterable[dict[str, Any]]:
    """Return the rows of a batch; where one cannot be decoded, those before it and then its error."""
    try:
        return batch.to_pylist()
    except (ValueError, ArithmeticError):
        return (batch.slice(index, 1).to_pylist()[0] for index in range(len(batch)))


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


_READERS: dict[str, Callable[[str, bytes], Iterator[tuple[dict[str, Any], str]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
