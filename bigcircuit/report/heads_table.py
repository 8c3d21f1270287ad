"""Table of the kept heads of a page: which, how much of each, what closing one costs, in how many circuits."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.io.files import Json
from bigcircuit.metrics.numbers import score_text
from bigcircuit.report.circuits_table import Column, TableCell


class HeadsTable(NamedTuple):
    """Kept heads by name, and the columns about them."""

    names: Sequence[str]
    legend: str
    """Sentence that explains the first name."""
    places: Sequence[int]
    """Number of each head in the model, to sort by."""
    columns: Sequence[Column]
    measured: str
    """Sentence about the column of KL; empty without one."""
    grouped: bool
    """Whether KL was measured for groups of heads, so that there is no column of it."""


def heads_table(circuits: Mapping[str, Circuit], evaluations: Sequence[Json]) -> HeadsTable | None:
    """Make the table of circuits of one model, most needed heads first; None if no head is kept.

    evaluations: contents of evaluation.json, whose minimality tells what closing a head costs.
    """
    kept: dict[str, list[tuple[int, int]]] = {}
    places: dict[str, tuple[int, int]] = {}
    for circuit in circuits.values():
        for row in circuit.nodes("head"):
            kept.setdefault(row.name, []).append((row.neurons, row.of))
            places[row.name] = row.layer, row.place
    rises, grouped, about = _rises(evaluations)
    found = {name: rises.get(place) for name, place in places.items()}
    order = sorted(kept, key=lambda n: (-(found[n] or {}).get("mean", float("-inf")), -len(kept[n]), places[n]))
    if not order:
        return None
    several = len(circuits) > 1
    columns = [Column("neurons kept", [_neurons(kept[name]) for name in order])]
    if rises:
        columns.append(Column("KL rises by, nats", [_rise(found[name]) for name in order]))
    if several:
        cells = [TableCell(f"{len(kept[name])} of {len(circuits)}", len(kept[name])) for name in order]
        columns.append(Column("kept by", cells))
    widest = 1 + max(head for _, head in places.values())
    numbers = [layer * widest + head for layer, head in (places[name] for name in order)]
    layer, head = places[order[0]]
    legend = f"{order[0]} is head {head} of layer {layer}"
    return HeadsTable(
        names=order,
        legend=legend,
        places=numbers,
        columns=columns,
        measured=about if rises else "",
        grouped=grouped,
    )


def _rises(evaluations: Sequence[Json]) -> tuple[dict[tuple[int, int], Json], bool, str]:
    """Collect the rise of KL by (layer, head) of the first circuit whose heads were closed one by one.

    Returns also whether heads were closed in groups only, and a sentence about what was measured.
    """
    grouped = False
    for evaluation in evaluations:
        for circuit in evaluation["circuits"]:
            for ablation, under in circuit["ablations"].items():
                found = under["minimality"].get("head")
                if not found:
                    continue
                if found["group"] > 1:
                    grouped = True
                    continue
                rises = {(one["layer"], one["nodes"][0]): one["kl_change"] for one in found["dropped"]}
                whose = f" of circuit {circuit['name']}" if len(evaluation["circuits"]) > 1 else ""
                return rises, False, f"How much KL rises when the head{whose} alone is closed, {ablation} ablation."
    return {}, grouped, ""


def _neurons(kept: Sequence[tuple[int, int]]) -> TableCell:
    numbers, of = [neurons for neurons, _ in kept], kept[0][1]
    text = str(numbers[0]) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
    return TableCell(f"{text} of {of}", sum(numbers) / len(numbers))


def _rise(rise: Json | None) -> TableCell:
    if rise is None or rise["mean"] is None:
        return TableCell("–", "")
    small = f"{score_text(rise['low'])} to {score_text(rise['high'])}"
    return TableCell(score_text(rise["mean"]), rise["mean"], small)
