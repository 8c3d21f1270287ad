"""Read a pair file or data set in any of the formats."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import filter as matching
from itertools import chain
from typing import Any

from bigcircuit.data.pair import Pair
from bigcircuit.data.readers.formats import FORMATS, PairFormat
from bigcircuit.data.readers.rows import SourceRow, read_rows, split_of
from bigcircuit.data.splits import OFF_DISTRIBUTION, SPLITS
from bigcircuit.errors import UserError

_ANYWHERE = ("split", "template")
"""Columns that are read in every format."""


def read_pairs(path: str, format: str | None = None, columns: Mapping[str, str] | None = None) -> list[Pair]:
    """Read all pairs of a file or data set, prompts exactly as they are written there.

    path: a JSONL, JSON, CSV or Parquet file, a folder saved by datasets' save_to_disk, or `hf://org/name`.
    format: key of FORMATS; None to recognise the format by the columns of the first row.
    columns: canonical column -> the file's column, such as {"clean": "prompt"}.
    Raises UserError, one line with the file, the row or column, and what to do.
    """
    columns = columns or {}
    if format is not None and format not in FORMATS:
        raise UserError(f"task.format {format!r} is unknown{_nearest(format, FORMATS)}; known: {', '.join(FORMATS)}")
    _check_columns(columns)
    rows = (_rename(row, columns) for row in read_rows(str(path)))
    first = next(rows)
    chosen = FORMATS[format or _recognise(path, first)]
    return [_convert(row, chosen) for row in chain([first], rows)]


def pairs_of_rows(name: str, rows: Iterable[Pair | Mapping[str, Any]]) -> list[Pair]:
    """Make pairs of what a task builder returns: pairs as they are, and mappings as the rows of a file.

    Raises UserError naming the task and the row.
    """
    pairs: list[Pair] = []
    for index, row in enumerate(rows):
        source = f"{name} row {index}"
        if isinstance(row, Pair):
            pairs.append(row if row.source else row._replace(source=source))
        elif isinstance(row, Mapping):
            plain = SourceRow({str(key): _as_list(value) for key, value in row.items()}, source)
            pairs.append(_convert(plain, FORMATS[_recognise(source, plain)]))
        else:
            raise UserError(
                f"{source}: is of type {type(row).__name__}; return mappings with clean, corrupted, answers, ..."
            )
    if not pairs:
        raise UserError(f"{name}: made no pairs; return at least two")
    return pairs


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, tuple | list) else value


def _check_columns(columns: Mapping[str, str]) -> None:
    known = dict.fromkeys(name for entry in FORMATS.values() for name in entry.columns if "*" not in name)
    for name in columns:
        if name not in (*known, *_ANYWHERE):
            near = _nearest(name, (*known, *_ANYWHERE))
            raise UserError(
                f"task.columns.{name}: no format has a column {name}{near}; known: {', '.join((*known, *_ANYWHERE))}"
            )


def _rename(row: SourceRow, columns: Mapping[str, str]) -> SourceRow:
    for canonical, name in columns.items():
        if name not in row.values:
            near = _nearest(name, row.values)
            raise UserError(f"{row.source}: no column {name}, which task.columns.{canonical} names{near}; {_has(row)}")
    return row._replace(values={**row.values, **{canonical: row.values[name] for canonical, name in columns.items()}})


def _recognise(path: str, first: SourceRow) -> str:
    """Return the format whose columns a file has. Raises UserError with the columns of the format `pairs` that are missing."""
    for name, known in FORMATS.items():
        if _missing(first, known) is None and _plausible(name, first):
            return name
    absent = [column for column in FORMATS["pairs"].columns if column not in first.values]
    free = [name for name in first.values if name not in FORMATS["pairs"].columns]
    near = get_close_matches(absent[0], list(map(_shown, free)), n=1, cutoff=0.4)
    remedy = (
        f"is {near[0]} {absent[0]}? then set task.columns.{absent[0]}={near[0]}"
        if near
        else "name yours in task.columns"
    )
    plural = "columns" if len(absent) > 1 else "column"
    raise UserError(f"{path}: no {plural} {', '.join(absent)}; {_has(first)}; {remedy}, or set task.format")


def _plausible(name: str, first: SourceRow) -> bool:
    """Return False for a file of format `pairs` that lacks its answers: it has the columns of edge-pruning but no targets."""
    return name != "edge-pruning" or any("<predict>" in str(first.values[column]) for column in ("clean", "corrupted"))


def _convert(row: SourceRow, chosen: PairFormat) -> Pair:
    missing = _missing(row, chosen)
    if missing is not None:
        near = _nearest(missing, row.values)
        raise UserError(
            f"{row.source}: no column {missing}{near}; {_has(row)}; fill it in, or name yours in task.columns"
        )
    try:
        pair = chosen.convert(row.values)
    except ValueError as error:
        raise UserError(f"{row.source}: {error}") from error
    split = split_of(row, (*SPLITS, OFF_DISTRIBUTION))
    return pair._replace(split=split, source=row.source, template=str(row.values.get("template") or ""))


def _missing(row: SourceRow, known: PairFormat) -> str | None:
    absent = (column for column in known.columns if column not in row.values)
    return next((column for column in absent if "*" not in column or not matching(row.values, column)), None)


def _has(row: SourceRow) -> str:
    names = [_shown(name) for name in row.values]
    return f"it has {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"


def _shown(name: object) -> str:
    """Return a column name, quoted if it is empty or not printable."""
    text = str(name)
    return text if text and text.isprintable() else repr(text)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(map(_shown, known)), n=1, cutoff=0.5)
    return f" (nearest: {near[0]})" if near else ""
