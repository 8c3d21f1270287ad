"""The table of the circuits on a page: those columns that tell its circuits apart."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bigcircuit.report.page import number, percent, score
from bigcircuit.results.run import Json


class TableCell(NamedTuple):
    """A value as it is shown, what it is sorted by, and what stands beneath it in small."""

    text: str
    value: Any
    small: str = ""


class Column(NamedTuple):
    """A heading and its cells, one a circuit."""

    heading: str
    cells: Sequence[TableCell]


def columns(rows: Sequence[Json]) -> list[Column]:
    """Size, KL and predictions always; of the rest the columns in which the circuits differ."""
    found = []
    for heading, cell, always in _COLUMNS:
        cells = [cell(row) for row in rows]
        if always or len({one.text for one in cells}) > 1:
            found.append(Column(heading, cells))
    return found


def _kept(name: str) -> Callable[[Json], TableCell]:
    return lambda row: TableCell(number(row["kept"][name]), row["kept"][name])


def _score(name: str) -> Callable[[Json], TableCell]:
    def cell(row: Json) -> TableCell:
        if name not in row["scores"]:
            return TableCell("–", "")
        found = row["scores"][name]
        return TableCell(score(found["mean"]), found["mean"], f"{score(found['low'])} to {score(found['high'])}")

    return cell


def _said(name: str) -> Callable[[Json], TableCell]:
    return lambda row: TableCell(str(row.get(name, "")) or "–", row.get(name, ""))


def _parameters(row: Json) -> TableCell:
    share = row.get("parameters_kept")
    return TableCell("–", "") if share is None else TableCell(percent(share), share)


_COLUMNS: Sequence[tuple[str, Callable[[Json], TableCell], bool]] = (
    ("task", _said("task"), False),
    ("found under", _said("found_under"), False),
    ("seed", _said("seed"), False),
    ("asked for", _said("asked"), False),
    ("neurons", _kept("total"), True),
    ("heads", _kept("head"), True),
    ("KL, nats", _score("kl"), True),
    ("same prediction", _score("exact_match"), True),
    ("accuracy", _score("accuracy"), False),
    ("logit difference", _score("logit_difference"), False),
    ("MLPs", _kept("mlp"), False),
    ("attention neurons", _kept("attention_neuron"), False),
    ("MLP neurons", _kept("mlp_neuron"), False),
    ("parameters", _parameters, False),
    ("best step", _said("best_step"), False),
)
