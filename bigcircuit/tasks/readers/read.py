"""Choose the format of a pair file and read it."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from bigcircuit.errors import UserError
from bigcircuit.tasks.pair import Pair
from bigcircuit.tasks.readers.formats import FORMATS, Format
from bigcircuit.tasks.readers.rows import Row, read_rows
from bigcircuit.tasks.split import SPLITS


def read_pairs(path: str, format: str | None = None, columns: Mapping[str, str] | None = None) -> list[Pair]:
    """All pairs of a file or data set.

    format: a key of FORMATS, found out from the columns when None. columns: canonical column -> the file's column.
    Raises UserError, one line that names file, row and remedy.
    """
    rows = read_rows(path)
    if columns:
        rows = [_rename(row, columns) for row in rows]
    chosen = _choose(path, rows[0], format)
    return [_convert(row, chosen) for row in rows]


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    missing = next((name for name in columns.values() if name not in row.values), None)
    if missing is not None:
        raise UserError(f"{row.source}: task.columns names {missing}, which the row has not{_has(row)}")
    return row._replace(values={**row.values, **{ours: row.values[theirs] for ours, theirs in columns.items()}})


def _choose(path: str, first: Row, format: str | None) -> Format:
    if format is not None:
        if format not in FORMATS:
            near = get_close_matches(format, FORMATS, n=1, cutoff=0.4)
            raise UserError(
                f"task.format {format!r} is unknown{f'; did you mean {near[0]}?' if near else ''} (known: {', '.join(FORMATS)})"
            )
        return FORMATS[format]
    for known in FORMATS.values():
        if all(column in first.values for column in known.columns):
            # A pair file that lost its answers must not pass for the format in which answers stand inside the prompts.
            if known is not FORMATS["edge-pruning"] or "<predict>" in str(first.values["clean"]):
                return known
    missing = [column for column in FORMATS["pairs"].columns if column not in first.values]
    near = get_close_matches(missing[0], [str(name) for name in first.values], n=1, cutoff=0.4)
    hint = (
        f"; is {near[0]} it? then set task.columns.{missing[0]} {near[0]}" if near else "; map yours with task.columns"
    )
    raise UserError(f"{path}: column {missing[0]} is missing{_has(first)}{hint}")


def _convert(row: Row, chosen: Format) -> Pair:
    missing = next((column for column in chosen.columns if column not in row.values), None)
    if missing is not None:
        raise UserError(f"{row.source}: column {missing} is missing{_has(row)}; fill it in or drop the row")
    try:
        pair = chosen.convert(row.values)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{row.source}: {error}; mend or drop the row") from error
    if pair.split not in ("", *SPLITS):
        raise UserError(f"{row.source}: split is {pair.split!r}; use {_either(SPLITS)}")
    return pair._replace(source=row.source)


def _has(row: Row) -> str:
    return f" (it has: {', '.join(map(str, row.values))})"


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
