"""What the page shows, section by section, as plain values for the template. A section without data is empty or None."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bigcircuit.circuit import Circuit
from bigcircuit.evaluation.comparison import Stability
from bigcircuit.evaluation.sets import overlap, stability
from bigcircuit.gates.granularity import GRANULARITIES
from bigcircuit.report import charts, evaluated, headline
from bigcircuit.report.drawing import Drawing, draw
from bigcircuit.report.evaluated import Tables
from bigcircuit.report.figures import Chart
from bigcircuit.report.sources import Json, Member, Source, nodes, widths

BUDGET = 700_000
"""Bytes of drawings on one page; circuits beyond are in its tables, and each has a page of its own when asked for."""


class Shown(NamedTuple):
    """One circuit, or all of them over each other, drawn."""

    anchor: str
    """Its id on the page: `member-0`, or `all`."""
    name: str
    drawing: Drawing
    row: Json
    """Empty for all together."""
    examples: Sequence[Json]


class Comparison(NamedTuple):
    """What several circuits share."""

    names: Sequence[str]
    overlap: Mapping[str, Json]
    charts: Sequence[Chart]
    verdict: str


@dataclass(frozen=True)
class Page:
    """Everything on one page."""

    title: str
    subtitle: str
    lead: str
    tiles: Sequence[headline.Tile]
    asked: Sequence[tuple[str, str]]
    nodes: Mapping[str, int]
    rows: Sequence[Json]
    """A row a circuit: `name`, `anchor` (empty if it is not drawn) and those of summary.json."""
    shown: Sequence[Shown]
    not_drawn: int
    gone: Sequence[str]
    """Circuits whose files are not there any more."""
    summary: Json | None
    scores: evaluated.Scored | None
    """Where there is no evaluation."""
    training: Sequence[Chart]
    population: Sequence[Chart]
    comparison: Comparison | None
    tables: Tables | None
    sizes: Sequence[Chart]
    partial: Sequence[Chart]
    hashes: Sequence[tuple[str, str]]
    versions: Mapping[str, str]
    settings: str
    """All settings and the command, as JSON."""

    def all_charts(self) -> list[Chart]:
        """Every figure of the page."""
        compared = self.comparison.charts if self.comparison else ()
        return [*self.training, *self.population, *compared, *self.sizes, *self.partial]

    def drawings(self) -> dict[str, Drawing]:
        """The drawings of single circuits, by name."""
        return {one.name: one.drawing for one in self.shown if one.row}


def page(sources: Sequence[Source]) -> Page:
    """The page of one run, population or circuit file, or of a comparison of several."""
    first = sources[0]
    alone = len(sources) == 1
    members, of = _named(sources), first.nodes
    rows = [{"name": name, "anchor": "", "asked": headline.size_asked(m.row), **m.row} for name, m in members.items()]
    at_hand = {name: m.circuit for name, m in members.items() if m.circuit is not None}
    shown, left = _drawn(members, at_hand)
    anchors = {one.name: one.anchor for one in shown if one.row}
    for row in rows:
        row["anchor"] = anchors.get(row["name"], "")
    beside = alone and first.comparison is not None  # a comparison with others counts more than one among themselves
    others = first.compared if beside and (first.summary or first.evaluation) else {}
    if others and same_model(list(others.values())):
        shown.append(Shown("compared", "compared", draw(others), {}, ()))
    compared = _recorded(first.comparison) if beside else comparison(at_hand)
    evaluation, population = first.evaluation if alone else None, alone and first.summary is not None
    return Page(
        title=headline.title(sources),
        subtitle=headline.subtitle(sources),
        lead=headline.lead(
            first if alone else replace(first, evaluation=None), members, compared.verdict if compared else ""
        ),
        tiles=headline.tiles(rows, of, compared.overlap["head"]["pairs"] if compared else None, population=population),
        asked=headline.asked(first) if alone else [],
        nodes=of,
        rows=rows,
        shown=shown,
        not_drawn=left,
        gone=[name for name in members if name not in at_hand],
        summary=first.summary if alone else None,
        scores=evaluated.summary_table(first.summary, rows) if alone and first.summary and not evaluation else None,
        training=charts.training(first) if alone else [],
        population=charts.population(first) if population else [],
        comparison=compared,
        tables=evaluated.tables(evaluation) if evaluation else None,
        sizes=charts.curves(evaluation) if evaluation else [],
        partial=charts.partial(evaluation) if evaluation else [],
        hashes=headline.hashes(first),
        versions=first.setup["versions"] if alone and first.setup else {},
        settings=json.dumps({k: first.setup[k] for k in ("command", "config")}, indent=2)
        if alone and first.setup
        else "",
    )


def _named(sources: Sequence[Source]) -> dict[str, Member]:
    """All circuits by a name of their own."""
    found: dict[str, Member] = {}
    for source in sources:
        for member in source.members:
            several = len(source.members) > 1
            alone = len(sources) == 1 and several
            name = member.name if alone else f"{source.name}/{member.name}" if several else source.name
            number, unique = 1, name
            while unique in found:
                number += 1
                unique = f"{name} ({number})"
            found[unique] = member
    return found


def _drawn(members: Mapping[str, Member], at_hand: Mapping[str, Circuit]) -> tuple[list[Shown], int]:
    """Drawings within the budget of a page: all circuits over each other first, then one by one; how many are left out.

    at_hand: the circuits of those members whose files are there.
    """
    shown, used = [], 0
    if len(at_hand) > 1 and same_model(list(at_hand.values())):
        together = draw(at_hand)
        shown.append(Shown("all", "all together", together, {}, ()))
        used = together.bytes
    places = {name: index for index, name in enumerate(members)}
    for index, (name, circuit) in enumerate(at_hand.items()):
        drawing = draw({name: circuit})
        used += drawing.bytes
        if index and used > BUDGET:
            return shown, len(at_hand) - index
        shown.append(Shown(f"member-{places[name]}", name, drawing, members[name].row, members[name].examples))
    return shown, 0


def same_model(circuits: Sequence[Circuit]) -> bool:
    """Whether they can be drawn over each other."""
    first = circuits[0]
    return all(widths(one) == widths(first) for one in circuits)


def _recorded(comparison: Json) -> Comparison:
    """What comparison.json says, which needs no circuit."""
    known, found = comparison["nodes"], comparison["stability"]
    rows = {n: {"of": known[n], **o, "pairs": found[n]} for n, o in comparison["overlap"].items()}
    names = [one["name"] for one in comparison["circuits"]]
    return _shared(names, rows, {name: Stability(**one) for name, one in found.items()}, comparison["verdict"])


def comparison(circuits: Mapping[str, Circuit]) -> Comparison | None:
    """What the circuits of a page share; None if there are less than two, or of different models."""
    if len(circuits) < 2 or not same_model(list(circuits.values())):
        return None
    known = nodes(next(iter(circuits.values())))
    common = [name for name in GRANULARITIES if all(name in one.masks for one in circuits.values())]
    masks = {name: [one.masks[name] for one in circuits.values()] for name in common}
    pairs = zip(masks["attention_neuron"], masks["mlp_neuron"], strict=True)
    masks["total"] = [_joined(*pair) for pair in pairs]
    shared = {name: overlap(found, known[name]) for name, found in masks.items()}
    similar = {name: stability(found, known[name]) for name, found in masks.items()}
    rows = {name: {"of": known[name], **vars(shared[name]), "pairs": vars(similar[name])} for name in masks}
    heads, neurons = similar["head"], similar["total"]
    verdict = (
        f"The overlap of {'the two' if len(circuits) == 2 else 'two'} circuits (Jaccard) is {heads.mean:.2f} of their heads, by "
        f"chance {heads.chance:.2f}, and {neurons.mean:.2f} of their neurons, by chance {neurons.chance:.2f}."
    )
    return _shared(list(circuits), rows, similar, verdict)


def _shared(
    names: Sequence[str], rows: Mapping[str, Json], similar: Mapping[str, Stability], verdict: str
) -> Comparison:
    """rows: by granularity; key/value groups of one head each are heads, and are left out."""
    alone = "kv_group" in rows and rows["kv_group"]["of"] == rows["head"]["of"]
    rows = {name: row for name, row in rows.items() if not (alone and name == "kv_group")}
    figures = charts.shared(rows) + (charts.similarity(names, similar) if len(names) > 2 else [])
    return Comparison(names, rows, figures, verdict)


def _joined(attention: Any, mlp: Any) -> Any:
    import torch

    return torch.cat([attention, mlp], dim=1)
