"""Score tables of a page: circuits beside controls, minimality, circuits across tasks, areas of the rankings."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bigcircuit.circuit.nodes import node_names
from bigcircuit.io.files import Json
from bigcircuit.metrics.registry import SCORES, page_scores
from bigcircuit.model.granularity import GRANULARITIES


class ScoreCell(NamedTuple):
    """One score: a mean with the interval around it; None for what is not known or not defined."""

    mean: float | None
    low: float | None
    high: float | None
    tails: Sequence[tuple[str, float]] = ()
    """Names and values of the bad tails over pairs."""


_NO_SCORE = ScoreCell(None, None, None)


class ScoreRow(NamedTuple):
    """One line of a table of scores."""

    name: str
    detail: str
    cells: Sequence[ScoreCell]
    main: bool = False
    """Whether the row is of the circuit itself, not of something it is compared with."""


class ScoreTable(NamedTuple):
    """Scores under one ablation."""

    title: str
    headings: Sequence[str]
    rows: Sequence[ScoreRow]


class MinimalityRow(NamedTuple):
    """Minimality of one circuit under one ablation at one granularity."""

    circuit: str
    ablation: str
    level: str
    kept: int
    group: int
    unnecessary: int
    together: float | None
    """KL without all unnecessary nodes."""
    most: Sequence[tuple[str, ScoreCell]]
    """The most necessary nodes or groups, and how much KL rises without them."""


class CrossTable(NamedTuple):
    """Headline scores of every circuit on every task under one ablation."""

    ablation: str
    headings: Sequence[str]
    """Of the scores in each cell."""
    tasks: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[Sequence[str], bool]]]]
    """Name of a circuit, then for every task the scores as text, and whether the circuit was found on the task."""


class ScoreTables(NamedTuple):
    """All tables of an evaluation."""

    scores: Sequence[ScoreTable]
    off_distribution: Sequence[ScoreTable]
    minimality: Sequence[MinimalityRow]
    cross: Sequence[CrossTable]
    areas: Sequence[Json]
    """Curves of evaluation.json, each with its ablation and `best`."""


def score_tables(evaluation: Json) -> ScoreTables:
    """Make all tables of evaluation.json."""
    ablations = list(dict.fromkeys(a for circuit in evaluation["circuits"] for a in circuit["ablations"]))
    return ScoreTables(
        [_scored(evaluation, ablation) for ablation in ablations],
        [found for ablation in ablations if (found := _off(evaluation, ablation)).rows],
        _minimality(evaluation),
        [_cross(ablation, cells) for ablation, cells in evaluation["cross"].items() if cells],
        _areas(evaluation["curves"]),
    )


def _areas(curves: Mapping[str, Sequence[Json]]) -> list[Json]:
    """List the curves with their ablation, and with `best`: which of `cpr` and `cmd` is best for ablation, level and ranking."""
    found: list[Json] = []
    for ablation, every in curves.items():
        for curve in every:
            like = [one for one in every if (one["level"], one["ranking"]) == (curve["level"], curve["ranking"])]
            ends = {"cpr": max(one["cpr"] for one in like), "cmd": min(one["cmd"] for one in like)}
            best = [name for name, end in ends.items() if len(like) > 1 and curve[name] == end]
            found.append({"ablation": ablation, **curve, "best": best})
    return found


def summary_table(summary: Json, rows: Sequence[Json]) -> ScoreTable:
    """Make the table of a run that has not been evaluated from its summary and rows with a `name` each."""
    names = _known(summary["full"])
    found = [ScoreRow("full model", "", _cells(summary["full"], names))]
    for row in rows:
        name = row["name"] if len(rows) > 1 else "circuit"
        found.append(ScoreRow(name, f"{row['kept']['total']:,} neurons", _cells(row["scores"], names), main=True))
    found.append(ScoreRow("nothing kept", "", _cells(summary["empty"], names)))
    return _table(summary["ablation"], names, found)


def _known(scores: Mapping[str, Any]) -> list[str]:
    """List the scores that a file has, in the order of columns; older files lack scores that were added later."""
    return [name for name in page_scores() if name in scores]


def _table(ablation: str, names: Sequence[str], rows: Sequence[ScoreRow]) -> ScoreTable:
    return ScoreTable(_title(ablation), [SCORES[name].heading for name in names], rows)


def _title(ablation: str) -> str:
    return f"{ablation.replace('_', ' ').capitalize()} ablation"


def _cells(scores: Mapping[str, Any], names: Sequence[str]) -> list[ScoreCell]:
    """Make the cells of a row; empty for scores that it does not have."""
    return [_cell(scores[name], SCORES[name].tails) if name in scores else _NO_SCORE for name in names]


def _cell(score: Mapping[str, Any], tails: Sequence[str]) -> ScoreCell:
    known = [(tail, score[tail]) for tail in tails if score.get(tail) is not None]
    return ScoreCell(score["mean"], score["low"], score["high"], known)


def _scored(evaluation: Json, ablation: str) -> ScoreTable:
    """Make the table of one ablation: full model, circuits with complements and random circuits, empty circuit."""
    circuits = [c for c in evaluation["circuits"] if ablation in c["ablations"]]
    tasks = evaluation["tasks"]
    names = _known(circuits[0]["ablations"][ablation]["circuit"])
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
                ScoreCell(one["mean"], one["p5"], one["p95"]) if (one := drawn.get(name)) else _NO_SCORE
                for name in names
            ]
            rows.append(ScoreRow(f"{found['random']['draws']} random circuits", _beaten(drawn["kl"]), cells))
    nothing = circuits[0]["ablations"][ablation]["empty"]
    rows.append(ScoreRow("nothing kept", "", _cells(nothing, names)))
    return _table(ablation, names, rows)


def _beaten(kl: Json) -> str:
    return f"of the same shape; {kl['better'] or 'none'} as close, p = {kl['p']:.2g}"


def _off(evaluation: Json, ablation: str) -> ScoreTable:
    """Make the table of held-out templates under one ablation; without rows if there are none."""
    rows: list[ScoreRow] = []
    names: list[str] = []
    for circuit in evaluation["circuits"]:
        found = circuit["ablations"].get(ablation, {}).get("off_distribution")
        if not found:
            continue
        names = _known(found["circuit"])
        full = evaluation["tasks"][circuit["task"]]["full_off_distribution"]
        rows += [ScoreRow("full model", f"{found['pairs']} pairs", _cells(full, names))] if full and not rows else []
        rows.append(ScoreRow(f"circuit {circuit['name']}", "", _cells(found["circuit"], names), main=True))
        rows.append(ScoreRow("the rest without it", "complement", _cells(found["complement"], names)))
        rows.append(ScoreRow("nothing kept", "", _cells(found["empty"], names)))
    return _table(ablation, names, rows)


def _minimality(evaluation: Json) -> list[MinimalityRow]:
    """List minimality of all circuits, from coarse to fine granularities."""
    dimension = evaluation["nodes"]["attention_neuron"] // max(evaluation["nodes"]["head"], 1)
    found = []
    for circuit in evaluation["circuits"]:
        for ablation, under in circuit["ablations"].items():
            for level in filter(under["minimality"].__contains__, GRANULARITIES):
                one = under["minimality"][level]
                most = [
                    (node_names(level, dropped["layer"], dropped["nodes"], dimension), _cell(dropped["kl_change"], ()))
                    for dropped in one["dropped"][:3]
                    if dropped["necessary"]
                ]
                found.append(
                    MinimalityRow(
                        circuit=circuit["name"],
                        ablation=ablation.replace("_", " "),
                        level=level,
                        kept=one["kept"],
                        group=one["group"],
                        unnecessary=one["unnecessary"],
                        together=one["together"]["kl"]["mean"] if one["together"] else None,
                        most=most,
                    )
                )
    return found


def _cross(ablation: str, cells: Sequence[Json]) -> CrossTable:
    """Arrange the cells of one ablation by circuit and task."""
    known = {name for cell in cells for name in cell["scores"]}
    scores = {name: kind for name, kind in SCORES.items() if kind.headline and name in known}
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    circuits = list(dict.fromkeys(cell["circuit"] for cell in cells))
    by_place = {(cell["circuit"], cell["task"]): cell for cell in cells}

    def texts(cell: Json) -> list[str]:
        means = {name: cell["scores"].get(name, {}).get("mean") for name in scores}
        return ["–" if mean is None else format(mean, scores[name].headline) for name, mean in means.items()]

    def row(circuit: str) -> list[tuple[list[str], bool]]:
        return [(texts(cell), cell["own"]) for cell in (by_place[circuit, task] for task in tasks)]

    headings = [kind.long for kind in scores.values()]
    return CrossTable(ablation, headings, tasks, [(circuit, row(circuit)) for circuit in circuits])
