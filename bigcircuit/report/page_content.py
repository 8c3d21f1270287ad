"""Content of the page of runs and circuits as plain values for the template. A section without data is empty or None."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.ablation.kinds import DEFAULT, KINDS
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.overlap import Stability, overlap, overlap_sentence, stability
from bigcircuit.io.files import Json
from bigcircuit.model.granularity import COUNTED, GRANULARITIES, LEAVES
from bigcircuit.report import charts, facts, headline, score_tables
from bigcircuit.report.circuits_table import Column, circuit_columns
from bigcircuit.report.drawing import Drawing, draw_circuits
from bigcircuit.report.facts import Fact
from bigcircuit.report.figures import Chart
from bigcircuit.report.heads_table import HeadsTable, heads_table
from bigcircuit.report.score_tables import ScoreTables
from bigcircuit.results.evaluation import CHECK_SIGNS
from bigcircuit.results.locate import unique
from bigcircuit.results.run import RunCircuit, RunSource, node_widths, nodes_of_model

BUDGET = 700_000
"""Most bytes of drawings on one page; further circuits are in the tables only, and `report` draws them on pages of their own."""


class ShownCircuit(NamedTuple):
    """Drawing of one circuit, or of several circuits over each other."""

    anchor: str
    """Id of the element on the page: `member-0`, or `all`."""
    name: str
    drawing: Drawing
    row: Json
    """Row of summary.json; empty for several circuits."""
    examples: Sequence[Json]


class ComparedCircuits(NamedTuple):
    """Overlap of several circuits."""

    names: Sequence[str]
    overlap: Mapping[str, Json]
    charts: Sequence[Chart]
    verdict: str
    saved: Mapping[str, str]
    """`union`, `intersection`, `difference` -> file."""


class MeasuredRun(NamedTuple):
    """Scores of the circuits of one run or file."""

    name: str
    verdict: str
    checks: Sequence[Json]
    """Answers to four questions about the first circuit, each with its `sign`."""
    first: str
    """Name of the first circuit where several were evaluated, else empty."""
    missing: Sequence[str]
    """One sentence for each part of the evaluation that was asked for and is missing."""
    scores: score_tables.ScoreTable | None
    """Table of the run itself, where it has not been evaluated."""
    tables: ScoreTables | None
    sizes: Sequence[Chart]
    partial: Sequence[Chart]


@dataclass(frozen=True)
class Page:
    """Content of the page of runs and circuits."""

    title: str
    subtitle: str
    lead: str
    tiles: Sequence[headline.Tile]
    asked: Sequence[Fact]
    nodes: Mapping[str, int]
    kind: str
    """Word for the circuits: `circuits`, or `members` of one population."""
    rows: Sequence[Json]
    """One row per circuit: `name`, `anchor` (empty if the circuit is not drawn) and the keys of summary.json."""
    columns: Sequence[Column]
    shown: Sequence[ShownCircuit]
    heads: HeadsTable | None
    """Kept heads of all circuits; None if no head is kept or the circuits are of several models."""
    inside: Mapping[str, Json]
    """Name of an evaluated circuit -> what its most needed heads and neurons do."""
    snippet: str
    """Python that opens the first circuit that has a file; empty without any."""
    not_drawn: int
    gone: Sequence[str]
    """Names of circuits whose files are gone."""
    training: Sequence[Chart]
    population: Sequence[Chart]
    comparison: ComparedCircuits | None
    measured: Sequence[MeasuredRun]
    hashes: Sequence[Fact]
    versions: Mapping[str, str]
    settings: Sequence[tuple[str, str]]
    """Name of every run, and its commands, settings and versions as JSON."""

    def all_charts(self) -> list[Chart]:
        """List all figures of the page."""
        compared = self.comparison.charts if self.comparison else ()
        measured = [chart for one in self.measured for chart in (*one.sizes, *one.partial)]
        return [*self.training, *self.population, *compared, *measured]

    def drawings(self) -> dict[str, Drawing]:
        """Return all drawings by name."""
        return {one.name: one.drawing for one in self.shown}


def page_content(sources: Sequence[RunSource]) -> Page:
    """Compute the content of the page of one run, population or circuit file, or of several beside each other."""
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
        shown.append(ShownCircuit("compared", "compared", draw_circuits(others), {}, ()))
    compared = _recorded(first.comparison) if beside and first.comparison else compare(at_hand)
    listed = list(rows.values())
    verdict = first.evaluation["verdict"] if alone and first.evaluation else ""
    evaluations = [source.evaluation for source in sources if source.evaluation]
    setups = {source.name: found for source in sources if (found := _setup(source))}
    return Page(
        title=headline.title(members, kind),
        subtitle=headline.subtitle(members),
        lead=headline.lead(listed, of, verdict, compared.verdict if compared else ""),
        tiles=headline.tiles(listed, of, compared.overlap["head"]["pairs"] if compared else None),
        asked=facts.setting_facts(members),
        nodes=of,
        kind=kind,
        rows=listed,
        columns=circuit_columns(listed),
        shown=shown,
        heads=heads_table(at_hand, evaluations) if at_hand and same_model(list(at_hand.values())) else None,
        inside={
            name if alone else f"{source.name}: {name}": nodes
            for source in sources
            for name, nodes in (source.evaluation or {}).get("inside", {}).items()
        },
        snippet=next((_snippet(member, member.place) for member in first.members if member.place), ""),
        not_drawn=left,
        gone=[name for name in members if name not in at_hand],
        training=charts.training_charts(members),
        population=charts.population_charts(listed),
        comparison=compared,
        measured=[
            measured
            for source, named in zip(sources, by_source, strict=True)
            if (measured := _measured(source, [rows[name] for name in named], alone))
        ],
        hashes=facts.hash_facts(members),
        versions=next((part["versions"] for found in setups.values() for part in found.values()), {}),
        settings=[(name, json.dumps(found, indent=2)) for name, found in setups.items()],
    )


def _snippet(member: RunCircuit, file: Path) -> str:
    """Write the Python that opens a circuit from its file and runs text through it."""
    needs = KINDS[member.metadata.get("ablation", DEFAULT)].needs_corrupted
    given = ', corrupted_ids=tokenizer(CORRUPTED, return_tensors="pt")' if needs else ""
    model = str(member.about.get("model", "")) or "MODEL"
    return (
        "import bigcircuit\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"circuit = bigcircuit.Circuit.load({str(file)!r})\n"
        f"path = {'bigcircuit.EMBEDDED' if model == 'embedded' else repr(model)}\n"
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)\n"
        f"with circuit.applied(model{given}) as masked:\n"
        '    masked.generate(**tokenizer(PROMPT, return_tensors="pt"))\n'
    )


def _row(name: str, member: RunCircuit) -> dict[str, Any]:
    own = {"name": name, "anchor": "", "asked": facts.requested_size(member.row), "task": headline.task_of(member)}
    return {**own, "found_under": member.metadata.get("ablation", "").replace("_", " "), **member.row}


def _setup(source: RunSource) -> Json:
    """Select command, settings and versions of the run, the evaluation and the comparison."""
    found = {"run": source.setup, "evaluation": source.evaluation, "comparison": source.comparison}
    kept = ("command", "config", "settings", "versions")
    return {what: {key: one[key] for key in kept if key in one} for what, one in found.items() if one}


def _measured(source: RunSource, rows: Sequence[Json], alone: bool) -> MeasuredRun | None:
    """Collect the scores of one source; None if it has none. alone: whether it is the only source of the page."""
    evaluation = source.evaluation
    if evaluation is None:
        scores = score_tables.summary_table(source.summary, rows) if source.summary else None
        if not scores:
            return None
        return MeasuredRun(
            name=source.name,
            verdict="",
            checks=(),
            first="",
            missing=(),
            scores=scores,
            tables=None,
            sizes=(),
            partial=(),
        )
    sizes, partial = charts.ranking_charts(evaluation), charts.partial_charts(evaluation)
    if not alone:  # so that files of figures have different names
        sizes, partial = (
            [chart._replace(key=f"{chart.key}_{source.name}") for chart in found] for found in (sizes, partial)
        )
    own = [one["name"] for one in evaluation["circuits"] if not one.get("control")]
    unfinished = [f"The evaluation has not reached {name} ablation yet." for name in evaluation.get("unfinished", ())]
    missing = [*unfinished, *evaluation.get("no_curves", ())]
    return MeasuredRun(
        name=source.name,
        verdict=evaluation["verdict"],
        checks=[{**one, "sign": CHECK_SIGNS.get(one["answer"], "?")} for one in evaluation.get("checks", ())],
        first=own[0] if len(own) > 1 else "",
        missing=missing,
        scores=None,
        tables=score_tables.score_tables(evaluation),
        sizes=sizes,
        partial=partial,
    )


def _named(sources: Sequence[RunSource]) -> list[dict[str, RunCircuit]]:
    """Give the circuits of every source unique names."""
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
    """Draw circuits within the budget of a page: all over each other first, then one by one; return also how many are left out.

    at_hand: the circuits of the members whose files exist.
    """
    shown, used = [], 0
    if len(at_hand) > 1 and same_model(list(at_hand.values())):
        together = draw_circuits(at_hand)
        shown.append(ShownCircuit("all", "all together", together, {}, ()))
        used = together.page_bytes
    places = {name: index for index, name in enumerate(members)}
    for index, (name, circuit) in enumerate(at_hand.items()):
        drawing = draw_circuits({name: circuit})
        used += drawing.page_bytes
        if index and used > BUDGET:
            return shown, len(at_hand) - index
        shown.append(ShownCircuit(f"member-{places[name]}", name, drawing, members[name].row, members[name].examples))
    return shown, 0


def same_model(circuits: Sequence[Circuit]) -> bool:
    """Whether circuits have the same numbers of nodes, so that they can be drawn over each other."""
    first = circuits[0]
    return all(node_widths(one) == node_widths(first) for one in circuits)


def _recorded(found: Json) -> ComparedCircuits:
    """Collect the overlap that comparison.json records, which needs no circuit file."""
    known, pairs = found["nodes"], found["stability"]
    rows = {n: {"of": known[n], **o, "pairs": pairs[n]} for n, o in found["overlap"].items()}
    names = [one["name"] for one in found["circuits"]]
    similar = {name: Stability(**one) for name, one in pairs.items()}
    return _compared(names, rows, similar, found["verdict"], found["saved"])


def compare(circuits: Mapping[str, Circuit]) -> ComparedCircuits | None:
    """Compute the overlap of the circuits of a page; None for fewer than two circuits, or circuits of different models."""
    if len(circuits) < 2 or not same_model(list(circuits.values())):
        return None
    known = nodes_of_model(next(iter(circuits.values())))
    common = [name for name in GRANULARITIES if all(name in one.masks for one in circuits.values())]
    masks = {name: [one.masks[name] for one in circuits.values()] for name in common}
    counted = [masks[LEAVES[site]] for site in COUNTED if LEAVES[site] in masks]
    masks["total"] = [_joined(parts) for parts in zip(*counted, strict=True)]
    shared = {name: overlap(found, known[name]) for name, found in masks.items()}
    similar = {name: stability(found, known[name]) for name, found in masks.items()}
    rows = {name: {"of": known[name], **vars(shared[name]), "pairs": vars(similar[name])} for name in masks}
    sentence = overlap_sentence(len(circuits), similar["head"], similar["total"])
    return _compared(list(circuits), rows, similar, sentence, {})


def _compared(
    names: Sequence[str],
    rows: Mapping[str, Json],
    similar: Mapping[str, Stability],
    verdict: str,
    saved: Mapping[str, str],
) -> ComparedCircuits:
    """Collect an overlap. rows: by granularity; key/value groups of one head each are heads, and are left out."""
    alone = "kv_group" in rows and rows["kv_group"]["of"] == rows["head"]["of"]
    rows = {name: row for name, row in rows.items() if not (alone and name == "kv_group")}
    figures = charts.overlap_charts(rows) + (charts.similarity_charts(names, similar) if len(names) > 2 else [])
    return ComparedCircuits(names, rows, figures, verdict, saved)


def _joined(masks: Sequence[Any]) -> Any:
    import torch

    return torch.cat([*masks], dim=1)
