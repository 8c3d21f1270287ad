"""Table of the circuits on a page: the columns that tell its circuits apart."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bigcircuit.io.files import Json
from bigcircuit.metrics.numbers import count_text, percent_text, score_text
from bigcircuit.metrics.registry import page_scores


class TableCell(NamedTuple):
    """A value of a table: as text, the value to sort by, and small text below."""

    text: str
    value: Any
    small: str = ""


class Column(NamedTuple):
    """A heading and its cells, one per circuit."""

    heading: str
    cells: Sequence[TableCell]


def circuit_columns(rows: Sequence[Json]) -> list[Column]:
    """Make the columns for rows of summary.json: sizes and headline scores always, others where circuits differ."""
    found = []
    for heading, cell, always in _columns():
        cells = [cell(row) for row in rows]
        if always or len({one.text for one in cells}) > 1:
            found.append(Column(heading, cells))
    return found


_NOTHING = TableCell("–", "")


def _columns() -> Iterator[tuple[str, Callable[[Json], TableCell], bool]]:
    """List heading, cell of a row, and whether the column is always shown."""
    for heading, name in (("task", "task"), ("found under", "found_under"), ("seed", "seed"), ("asked for", "asked")):
        yield heading, _text(name), False
    yield "neurons", _kept("total"), True
    yield "heads", _kept("head"), True
    for name, kind in page_scores().items():
        if kind.in_brief:
            yield kind.heading, _score(name), bool(kind.headline) and "pairs" in kind.on
    for heading, name in (
        ("MLPs", "mlp"),
        ("attention neurons", "attention_neuron"),
        ("MLP neurons", "mlp_neuron"),
        ("mixer neurons", "mixer_neuron"),
        ("experts", "expert"),
        ("expert neurons", "expert_neuron"),
    ):
        yield heading, _kept(name), False
    yield "parameters", _parameters, False
    yield "best step", _text("best_step"), False


def _kept(name: str) -> Callable[[Json], TableCell]:
    return lambda row: TableCell(count_text(row["kept"][name]), row["kept"][name]) if name in row["kept"] else _NOTHING


def _score(name: str) -> Callable[[Json], TableCell]:
    def cell(row: Json) -> TableCell:
        if name not in row["scores"]:
            return TableCell("–", "")
        found = row["scores"][name]
        return TableCell(
            score_text(found["mean"]), found["mean"], f"{score_text(found['low'])} to {score_text(found['high'])}"
        )

    return cell


def _text(name: str) -> Callable[[Json], TableCell]:
    return lambda row: TableCell(str(row.get(name, "")) or "–", row.get(name, ""))


def _parameters(row: Json) -> TableCell:
    share = row.get("parameters_kept")
    return TableCell("–", "") if share is None else TableCell(percent_text(share), share)
