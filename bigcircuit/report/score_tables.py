"""The tables of evaluation.json: scores beside controls, minimality, circuits across tasks, areas of the rankings."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bigcircuit.model.granularity import GRANULARITIES
from bigcircuit.results.run import Json

HEADINGS = {
    "kl": "KL, nats",
    "exact_match": "same prediction",
    "accuracy": "accuracy",
    "logit_difference": "logit difference",
    "recovered": "recovered",
    "probability_difference": "probability difference",
    "cross_entropy": "cross-entropy, nats",
}
TAILS = {"kl": ("p95", "max"), "logit_difference": ("p5", "min"), "probability_difference": ("p5", "min")}


class ScoreCell(NamedTuple):
    """One score: a mean with the interval around it."""

    mean: float | None
    low: float | None
    high: float | None
    tails: Sequence[tuple[str, float]] = ()


class ScoreRow(NamedTuple):
    """One line of a table of scores."""

    name: str
    detail: str
    cells: Sequence[ScoreCell]
    main: bool = False
    """The circuit itself, among what it is compared with."""


class ScoreTable(NamedTuple):
    """Scores under one ablation."""

    ablation: str
    title: str
    headings: Sequence[str]
    rows: Sequence[ScoreRow]


class MinimalityRow(NamedTuple):
    """Minimality at one granularity."""

    circuit: str
    ablation: str
    level: str
    kept: int
    group: int
    unnecessary: int
    together: float | None
    """KL without all that are unnecessary."""
    most: Sequence[tuple[str, ScoreCell]]
    """The most necessary nodes or groups, and by how much KL rises without them."""


class ScoreTables(NamedTuple):
    """All tables of an evaluation."""

    scores: Sequence[ScoreTable]
    off_distribution: Sequence[ScoreTable]
    minimality: Sequence[MinimalityRow]
    cross: Sequence[tuple[str, Sequence[str], Sequence[tuple[str, Sequence[tuple[float, float, bool]]]]]]
    """By ablation: tasks, then for every circuit its KL and share of same predictions on each, and whether it is its own."""
    areas: Sequence[Json]


def score_tables(evaluation: Json) -> ScoreTables:
    """Everything that is a table."""
    ablations = list(dict.fromkeys(a for circuit in evaluation["circuits"] for a in circuit["ablations"]))
    return ScoreTables(
        [_scored(evaluation, ablation) for ablation in ablations],
        [found for ablation in ablations if (found := _off(evaluation, ablation)).rows],
        _minimality(evaluation),
        [_cross(ablation, cells) for ablation, cells in evaluation["cross"].items() if cells],
        [{"ablation": ablation, **curve} for ablation, found in evaluation["curves"].items() for curve in found],
    )


def summary_table(summary: Json, rows: Sequence[Json]) -> ScoreTable:
    """The scores of a run that has not been evaluated."""
    names = [name for name in HEADINGS if name in summary["full"]]
    found = [ScoreRow("full model", "", _cells(summary["full"], names))]
    for row in rows:
        name = row["name"] if len(rows) > 1 else "circuit"
        found.append(ScoreRow(name, f"{row['kept']['total']:,} neurons", _cells(row["scores"], names), main=True))
    found.append(ScoreRow("nothing kept", "", _cells(summary["empty"], names)))
    ablation = summary["ablation"]
    return ScoreTable(ablation, _title(ablation), [HEADINGS[name] for name in names], found)


def _title(ablation: str) -> str:
    return f"{ablation.replace('_', ' ').capitalize()} ablation"


def _cells(scores: Mapping[str, Any], names: Sequence[str]) -> list[ScoreCell]:
    return [
        ScoreCell(s["mean"], s["low"], s["high"], [(t, s[t]) for t in TAILS.get(name, ()) if s.get(t) is not None])
        for name, s in ((name, scores[name]) for name in names)
    ]


def _scored(evaluation: Json, ablation: str) -> ScoreTable:
    circuits = [c for c in evaluation["circuits"] if ablation in c["ablations"]]
    tasks = evaluation["tasks"]
    names = [name for name in HEADINGS if name in circuits[0]["ablations"][ablation]["circuit"]]
    rows = []
    for task in dict.fromkeys(c["task"] for c in circuits):
        detail = task if len(tasks) > 1 else f"{tasks[task]['pairs']['test']:,} pairs"
        rows.append(ScoreRow("full model", detail, _cells(tasks[task]["full"], names)))
    for circuit in circuits:
        found = circuit["ablations"][ablation]
        name = ("control " if circuit["control"] else "") + circuit["name"] if len(circuits) > 1 else "circuit"
        labels = "" if circuit["labels"] == "own" else f", found on {circuit['labels']} labels"
        size = f"{circuit['kept']['total']:,} neurons{labels}"
        rows.append(ScoreRow(name, size, _cells(found["circuit"], names), main=True))
        rows.append(ScoreRow("the rest without it", "complement", _cells(found["complement"], names)))
        if found["random"] and found["random"]["distinct"]:
            drawn = found["random"]["scores"]
            cells = [
                ScoreCell(d["mean"], d["p5"], d["p95"]) if (d := drawn.get(n)) else ScoreCell(None, None, None)
                for n in names
            ]
            rows.append(ScoreRow(f"{found['random']['draws']} random circuits", _beaten(drawn["kl"]), cells))
    nothing = circuits[0]["ablations"][ablation]["empty"]
    rows.append(ScoreRow("nothing kept", "", _cells(nothing, names)))
    return ScoreTable(ablation, _title(ablation), [HEADINGS[name] for name in names], rows)


def _beaten(kl: Json) -> str:
    return f"of the same shape; {kl['better'] or 'none'} as close, p = {kl['p']:.2g}"


def _off(evaluation: Json, ablation: str) -> ScoreTable:
    rows = []
    names: list[str] = []
    for circuit in evaluation["circuits"]:
        found = circuit["ablations"].get(ablation, {}).get("off_distribution")
        if not found:
            continue
        names = [name for name in HEADINGS if name in found["circuit"]]
        full = evaluation["tasks"][circuit["task"]]["full_off_distribution"]
        rows += [ScoreRow("full model", f"{found['pairs']} pairs", _cells(full, names))] if full and not rows else []
        rows.append(ScoreRow(f"circuit {circuit['name']}", "", _cells(found["circuit"], names), main=True))
        rows.append(ScoreRow("the rest without it", "complement", _cells(found["complement"], names)))
        rows.append(ScoreRow("nothing kept", "", _cells(found["empty"], names)))
    return ScoreTable(ablation, _title(ablation), [HEADINGS[name] for name in names], rows)


def _minimality(evaluation: Json) -> list[MinimalityRow]:
    dimension = evaluation["nodes"]["attention_neuron"] // evaluation["nodes"]["head"]
    found = []
    for circuit in evaluation["circuits"]:
        for ablation, under in circuit["ablations"].items():
            for level in filter(under["minimality"].__contains__, GRANULARITIES):
                one = under["minimality"][level]
                most = [
                    (place_of(level, d, dimension), ScoreCell(change["mean"], change["low"], change["high"]))
                    for d in one["dropped"][:3]
                    if d["necessary"] and (change := d["kl_change"])
                ]
                together = one["together"]["kl"]["mean"] if one["together"] else None
                sizes = one["kept"], one["group"], one["unnecessary"]
                found.append(MinimalityRow(circuit["name"], ablation.replace("_", " "), level, *sizes, together, most))
    return found


def place_of(level: str, dropped: Json, dimension: int) -> str:
    """Layer and nodes as the drawing names them: attention neurons by head and dimension; of many the first ones."""
    layer, nodes = f"layer {dropped['layer']}", dropped["nodes"]
    if level in ("block", "attention", "mlp"):
        return layer
    named = [f"{n // dimension}.{n % dimension}" if level == "attention_neuron" else str(n) for n in nodes]
    return f"{layer}: {', '.join(named[:3])}" + (f", … ({len(named)})" if len(named) > 3 else "")


def _cross(ablation: str, cells: Sequence[Json]) -> Any:
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    circuits = list(dict.fromkeys(cell["circuit"] for cell in cells))
    by_place = {(cell["circuit"], cell["task"]): cell for cell in cells}
    rows = [
        (
            circuit,
            [
                (c["scores"]["kl"]["mean"], c["scores"]["exact_match"]["mean"], c["own"])
                for c in (by_place[circuit, task] for task in tasks)
            ],
        )
        for circuit in circuits
    ]
    return ablation, tasks, rows
