"""Tables of the terminal that are as detailed as there is room."""

from collections.abc import Iterable

from rich.cells import cell_len
from rich.table import Table

from bigcircuit.runtime.console import PlainConsole

_UNLIMITED = 10_000


def first_that_fits(tables: Iterable[Table], width: int) -> Table:
    """Return the first table that fits into `width` columns, or else the last; tables: the most detailed first."""
    for table in tables:
        if _needed(table) <= width:
            break
    return table


def _needed(table: Table) -> int:
    """Width at which nothing is cut off and only columns with a `min_width` wrap, down to that width."""
    spare = 0
    for column in table.columns:
        if column.min_width is not None and not column.no_wrap:
            spare += max(0, max(cell_len(str(cell)) for cell in (column.header, *column.cells)) - column.min_width)
    return PlainConsole(width=_UNLIMITED).measure(table).maximum - spare
