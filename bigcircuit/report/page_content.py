"""What the page shows, section by section, as plain values for the template. A section without data is empty or None."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.overlap import Stability, overlap, overlap_sentence, stability
from bigcircuit.model.granularity import GRANULARITIES
from bigcircuit.report import charts, facts, headline, score_tables
from bigcircuit.report.circuits_table import Column, columns
from bigcircuit.report.drawing import Drawing, draw
from bigcircuit.report.facts import Fact
from bigcircuit.report.figures import Chart
from bigcircuit.report.score_tables import ScoreTables
from bigcircuit.results.locate import unique
from bigcircuit.results.run import Json, RunCircuit, RunSource, node_widths, nodes_of_model

BUDGET = 700_000
"""Bytes of drawings on one page; circuits beyond are in its tables, and each has a page of its own when asked for."""


class ShownCircuit(NamedTuple):
    """One circuit, or all of them over each other, drawn."""

    anchor: str
    """Its id on the page: `member-0`, or `all`."""
    name: str
    drawing: Drawing
    row: Json
    """Empty for all together."""
    examples: Sequence[Json]


class ComparedCircuits(NamedTuple):
    """What several circuits share."""

    names: Sequence[str]
    overlap: Mapping[str, Json]
    charts: Sequence[Chart]
    verdict: str
    saved: Mapping[str, str]
    """`union`, `intersection`, `difference` -> file."""


class MeasuredRun(NamedTuple):
    """The scores of the circuits of one run or file."""

    name: str
    verdict: str
    missing: Sequence[str]
    """What was asked for and is not there, in words."""
    scores: score_tables.ScoreTable | None
    """Where there is no evaluation."""
    tables: ScoreTables | None
    sizes: Sequence[Chart]
    partial: Sequence[Chart]


@dataclass(frozen=True)
class Page:
    """Everything on one page."""

    title: str
    subtitle: str
    lead: str
    tiles: Sequence[headline.Tile]
    asked: Sequence[Fact]
    nodes: Mapping[str, int]
    kind: str
    """What its circuits are called: `circuits`, or `members` of one population."""
    rows: Sequence[Json]
    """A row a circuit: `name`, `anchor` (empty if it is not drawn) and those of summary.json."""
    columns: Sequence[Column]
    shown: Sequence[ShownCircuit]
    not_drawn: int
    gone: Sequence[str]
    """Circuits whose files are not there any more."""
    training: Sequence[Chart]
    population: Sequence[Chart]
    comparison: ComparedCircuits | None
    measured: Sequence[MeasuredRun]
    hashes: Sequence[Fact]
    versions: Mapping[str, str]
    settings: Sequence[tuple[str, str]]
    """Of every run: its name; commands, settings and versions as JSON."""

    def all_charts(self) -> list[Chart]:
        """Every figure of the page."""
        compared = self.comparison.charts if self.comparison else ()
        measured = [chart for one in self.measured for chart in (*one.sizes, *one.partial)]
        return [*self.training, *self.population, *compared, *measured]

    def drawings(self) -> dict[str, Drawing]:
        """All drawings, by name."""
        return {one.name: one.drawing for one in self.shown}


def page_content(sources: Sequence[RunSource]) -> Page:
    """The page of one run, population or circuit file, or of a comparison of several."""
    first, alone = sources[0], len(sources) == 1
    of, kind = first.nodes, "members" if alone and first.summary else "circuits"
    by_source = _named(sources)
    members = {name: member for named in by_source for name, member in named.items()}
    rows = {name: _row(name, member) for name, member in members.items()}
    at_hand = {name: m.circuit for name, m in members.items() if m.circuit is not None}
    shown, left = _drawn(members, at_hand)
    for one in shown:
        if one.row:
            rows[one.name]["anchor"] = one.anchor
    beside = alone and first.comparison is not None  # a comparison with others counts more than one among themselves
    others = first.compared if beside and (first.summary or first.evaluation) else {}
    if others and same_model(list(others.values())):
        shown.append(ShownCircuit("compared", "compared", draw(others), {}, ()))
    compared = _recorded(first.comparison) if beside else comparison(at_hand)
    listed = list(rows.values())
    verdict = first.evaluation["verdict"] if alone and first.evaluation else ""
    setups = {source.name: found for source in sources if (found := _setup(source))}
    return Page(
        title=headline.title(members, kind),
        subtitle=headline.subtitle(members),
        lead=headline.lead(listed, of, verdict, compared.verdict if compared else ""),
        tiles=headline.tiles(listed, of, compared.overlap["head"]["pairs"] if compared else None),
        asked=facts.asked(members),
        nodes=of,
        kind=kind,
        rows=listed,
        columns=columns(listed),
        shown=shown,
        not_drawn=left,
        gone=[name for name in members if name not in at_hand],
        training=charts.training(members),
        population=charts.population(listed),
        comparison=compared,
        measured=[
            found
            for source, named in zip(sources, by_source, strict=True)
            if (found := _measured(source, [rows[name] for name in named], alone))
        ],
        hashes=facts.hashes(members),
        versions=next((part["versions"] for found in setups.values() for part in found.values()), {}),
        settings=[(name, json.dumps(found, indent=2)) for name, found in setups.items()],
    )


def _row(name: str, member: RunCircuit) -> dict[str, Any]:
    own = {"name": name, "anchor": "", "asked": facts.size_asked(member.row), "task": headline.task_of(member)}
    return {**own, "found_under": member.metadata.get("ablation", "").replace("_", " "), **member.row}


def _setup(source: RunSource) -> Json:
    """What ran, by kind: the run itself, an evaluation, a comparison."""
    found = {"run": source.setup, "evaluation": source.evaluation, "comparison": source.comparison}
    kept = ("command", "config", "settings", "versions")
    return {what: {key: one[key] for key in kept if key in one} for what, one in found.items() if one}


def _measured(source: RunSource, rows: Sequence[Json], alone: bool) -> MeasuredRun | None:
    evaluation = source.evaluation
    if evaluation is None:
        scores = score_tables.summary_table(source.summary, rows) if source.summary else None
        return MeasuredRun(source.name, "", (), scores, None, (), ()) if scores else None
    figures = [charts.curves(evaluation), charts.partial(evaluation)]
    if not alone:  # so that files of figures have names of their own
        figures = [[chart._replace(key=f"{chart.key}_{source.name}") for chart in found] for found in figures]
    unfinished = [f"The evaluation has not reached {name} ablation yet." for name in evaluation.get("unfinished", ())]
    missing = [*unfinished, *evaluation.get("no_curves", ())]
    return MeasuredRun(
        source.name, evaluation["verdict"], missing, None, score_tables.score_tables(evaluation), *figures
    )


def _named(sources: Sequence[RunSource]) -> list[dict[str, RunCircuit]]:
    """The circuits of every source, all by a name of their own."""
    taken: set[str] = set()
    found = []
    for source in sources:
        named = {}
        for member in source.members:
            several = len(source.members) > 1
            run = f"member {member.name}" if source.summary else member.name
            name = (run if len(sources) == 1 else f"{source.name}/{member.name}") if several else source.name
            taken.add(name := unique(name, taken))
            named[name] = member
        found.append(named)
    return found


def _drawn(members: Mapping[str, RunCircuit], at_hand: Mapping[str, Circuit]) -> tuple[list[ShownCircuit], int]:
    """Drawings within the budget of a page: all circuits over each other first, then one by one; how many are left out.

    at_hand: the circuits of those members whose files are there.
    """
    shown, used = [], 0
    if len(at_hand) > 1 and same_model(list(at_hand.values())):
        together = draw(at_hand)
        shown.append(ShownCircuit("all", "all together", together, {}, ()))
        used = together.bytes
    places = {name: index for index, name in enumerate(members)}
    for index, (name, circuit) in enumerate(at_hand.items()):
        drawing = draw({name: circuit})
        used += drawing.bytes
        if index and used > BUDGET:
            return shown, len(at_hand) - index
        shown.append(ShownCircuit(f"member-{places[name]}", name, drawing, members[name].row, members[name].examples))
    return shown, 0


def same_model(circuits: Sequence[Circuit]) -> bool:
    """Whether they can be drawn over each other."""
    first = circuits[0]
    return all(node_widths(one) == node_widths(first) for one in circuits)


def _recorded(found: Json) -> ComparedCircuits:
    """What comparison.json says, which needs no circuit."""
    known, pairs = found["nodes"], found["stability"]
    rows = {n: {"of": known[n], **o, "pairs": pairs[n]} for n, o in found["overlap"].items()}
    names = [one["name"] for one in found["circuits"]]
    similar = {name: Stability(**one) for name, one in pairs.items()}
    return _shared(names, rows, similar, found["verdict"], found["saved"])


def comparison(circuits: Mapping[str, Circuit]) -> ComparedCircuits | None:
    """What the circuits of a page share; None if there are less than two, or of different models."""
    if len(circuits) < 2 or not same_model(list(circuits.values())):
        return None
    known = nodes_of_model(next(iter(circuits.values())))
    common = [name for name in GRANULARITIES if all(name in one.masks for one in circuits.values())]
    masks = {name: [one.masks[name] for one in circuits.values()] for name in common}
    pairs = zip(masks["attention_neuron"], masks["mlp_neuron"], strict=True)
    masks["total"] = [_joined(*pair) for pair in pairs]
    shared = {name: overlap(found, known[name]) for name, found in masks.items()}
    similar = {name: stability(found, known[name]) for name, found in masks.items()}
    rows = {name: {"of": known[name], **vars(shared[name]), "pairs": vars(similar[name])} for name in masks}
    return _shared(
        list(circuits), rows, similar, overlap_sentence(len(circuits), similar["head"], similar["total"]), {}
    )


def _shared(
    names: Sequence[str],
    rows: Mapping[str, Json],
    similar: Mapping[str, Stability],
    verdict: str,
    saved: Mapping[str, str],
) -> ComparedCircuits:
    """rows: by granularity; key/value groups of one head each are heads, and are left out."""
    alone = "kv_group" in rows and rows["kv_group"]["of"] == rows["head"]["of"]
    rows = {name: row for name, row in rows.items() if not (alone and name == "kv_group")}
    figures = charts.shared(rows) + (charts.similarity(names, similar) if len(names) > 2 else [])
    return ComparedCircuits(names, rows, figures, verdict, saved)


def _joined(attention: Any, mlp: Any) -> Any:
    import torch

    return torch.cat([attention, mlp], dim=1)
