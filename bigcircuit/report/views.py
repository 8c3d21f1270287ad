"""What the page shows, section by section, as plain values for the template. A section without data is empty or None."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.circuit import Circuit
from bigcircuit.errors import UserError
from bigcircuit.evaluation.sets import overlap, stability
from bigcircuit.gates.granularity import GRANULARITIES
from bigcircuit.report import charts, evaluated
from bigcircuit.report.drawing import Drawing, draw
from bigcircuit.report.evaluated import Tables
from bigcircuit.report.figures import Chart
from bigcircuit.report.sources import Json, Member, Source, nodes, widths

_BUDGET = 700_000
"""Bytes of drawings on one page; circuits beyond are in its tables, and each has a page of its own when asked for."""


class Tile(NamedTuple):
    """One figure of the headline."""

    value: str
    label: str
    detail: str = ""


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
    tiles: Sequence[Tile]
    asked: Sequence[tuple[str, str]]
    nodes: Mapping[str, int]
    rows: Sequence[Json]
    """A row a circuit: `name`, `anchor` (empty if it is not drawn) and those of summary.json."""
    shown: Sequence[Shown]
    not_drawn: int
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
    setup: Json | None
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
    members = _named(sources)
    rows = [{"name": name, "anchor": "", "asked": _sizes(m.row), **m.row} for name, m in members.items()]
    shown, left = _drawn(members)
    for row, one in zip(rows, [s for s in shown if s.row], strict=False):
        row["anchor"] = one.anchor
    others = _compared(first) if alone and first.summary else {}
    if others and _same_model(list(others.values())):
        shown.append(Shown("compared", "compared", draw(others), {}, ()))
    verdict = first.comparison["verdict"] if others and first.comparison else ""
    compared = _comparison(others or {name: m.circuit for name, m in members.items()}, verdict)
    evaluation = first.evaluation if alone else None
    return Page(
        title=_title(sources),
        subtitle=_subtitle(sources),
        lead=_lead(first if alone else replace(first, evaluation=None), members, compared),
        tiles=_tiles(rows, nodes(first.members[0].circuit), compared, population=alone),
        asked=_asked(first) if alone else [],
        nodes=nodes(first.members[0].circuit),
        rows=rows,
        shown=shown,
        not_drawn=left,
        summary=first.summary if alone else None,
        scores=evaluated.summary_table(first.summary, rows) if alone and first.summary and not evaluation else None,
        training=charts.training(first) if alone else [],
        population=charts.population(first) if alone and first.summary else [],
        comparison=compared,
        tables=evaluated.tables(evaluation) if evaluation else None,
        sizes=charts.curves(evaluation) if evaluation else [],
        partial=charts.partial(evaluation) if evaluation else [],
        hashes=_hashes(members),
        setup=first.setup if alone else None,
        settings=json.dumps({k: first.setup[k] for k in ("command", "config")}, indent=2) if first.setup else "",
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


def _drawn(members: Mapping[str, Member]) -> tuple[list[Shown], int]:
    """Drawings within the budget of a page: all circuits over each other first, then one by one; how many are left out."""
    shown, used = [], 0
    if len(members) > 1 and _same_model([m.circuit for m in members.values()]):
        together = draw({name: member.circuit for name, member in members.items()})
        shown.append(Shown("all", "all together", together, {}, ()))
        used = together.bytes
    for index, (name, member) in enumerate(members.items()):
        drawing = draw({name: member.circuit})
        used += drawing.bytes
        if index and used > _BUDGET:
            return shown, len(members) - index
        shown.append(Shown(f"member-{index}", name, drawing, member.row, member.examples))
    return shown, 0


def _same_model(circuits: Sequence[Circuit]) -> bool:
    first = circuits[0]
    return all(widths(one) == widths(first) for one in circuits)


def _compared(source: Source) -> dict[str, Circuit]:
    """The circuits of a run's comparison.json; none if it has none, or if their files are no longer there."""
    if source.comparison is None:
        return {}
    try:
        return {one["name"]: Circuit.load(one["file"]) for one in source.comparison["circuits"]}
    except UserError:
        return {}


def _comparison(circuits: Mapping[str, Circuit], verdict: str) -> Comparison | None:
    """Of the circuits of the page, or of those that a run was compared with."""
    if len(circuits) < 2 or not _same_model(list(circuits.values())):
        return None
    known = nodes(next(iter(circuits.values())))
    common = [name for name in GRANULARITIES if all(name in one.masks for one in circuits.values())]
    if known["kv_group"] == known["head"]:
        common.remove("kv_group")
    masks = {name: [one.masks[name] for one in circuits.values()] for name in common}
    pairs = zip(masks["attention_neuron"], masks["mlp_neuron"], strict=True)
    masks["total"] = [_joined(*pair) for pair in pairs]
    shared = {name: overlap(found, known[name]) for name, found in masks.items()}
    similar = {name: stability(found, known[name]) for name, found in masks.items()}
    rows = {name: {"of": known[name], **vars(shared[name]), "pairs": vars(similar[name])} for name in masks}
    figures = charts.shared(rows) + (charts.similarity(list(circuits), similar) if len(circuits) > 2 else [])
    heads, neurons = similar["head"], similar["total"]
    verdict = verdict or (
        f"The overlap of {'the two' if len(circuits) == 2 else 'two'} circuits (Jaccard) is {heads.mean:.2f} of their heads, by "
        f"chance {heads.chance:.2f}, and {neurons.mean:.2f} of their neurons, by chance {neurons.chance:.2f}."
    )
    return Comparison(list(circuits), rows, figures, verdict)


def _joined(attention: Any, mlp: Any) -> Any:
    import torch

    return torch.cat([attention, mlp], dim=1)


def _title(sources: Sequence[Source]) -> str:
    tasks = list(dict.fromkeys(_task(source) for source in sources))
    count = sum(len(source.members) for source in sources)
    return tasks[0] if len(tasks) == 1 and count == 1 else f"{', '.join(tasks)}: {count} circuits"


def _task(source: Source) -> str:
    name = str(source.summary["task"] if source.summary else source.metadata.get("task") or source.name)
    return Path(name).stem if "/" in name else name


def _subtitle(sources: Sequence[Source]) -> str:
    models = dict.fromkeys(str(s.summary["model"] if s.summary else s.metadata.get("model", "")) for s in sources)
    return ", ".join(name.rstrip("/").rsplit("/", 1)[-1] for name in models)


def _lead(source: Source, members: Mapping[str, Member], compared: Comparison | None) -> str:
    verdict = source.evaluation["verdict"] if source.evaluation else ""
    if len(members) > 1 and compared is not None:
        return f"{compared.verdict} {verdict and 'The first: ' + verdict}".strip()
    if verdict:
        return verdict
    row, of = next(iter(members.values())).row, nodes(source.members[0].circuit)
    kept, scores = row["kept"], row["scores"]
    text = (
        f"Keeping {kept['total']:,} of {of['total']:,} neurons ({kept['head']} of {of['head']} heads, {kept['mlp']} of "
        f"{of['mlp']} MLPs)"
    )
    if "exact_match" not in scores:
        return text + "."
    return (
        f"{text} the model still predicts what the full model predicts on {scores['exact_match']['mean']:.0%} of the held-out "
        f"prompts and prefers the right answer on {scores['accuracy']['mean']:.0%}."
    )


def _tiles(rows: Sequence[Json], of: Mapping[str, int], compared: Comparison | None, *, population: bool) -> list[Tile]:
    tiles = []
    if len(rows) > 1:
        tiles.append(
            Tile(str(len(rows)), "members" if population else "circuits", "of one population" if population else "")
        )
    for name, label in (("total", "neurons kept"), ("head", "heads"), ("mlp", "MLPs")):
        values = [row["kept"][name] for row in rows]
        share = _range([value / of[name] for value in values], "{:.0%}")
        tiles.append(Tile(_range(values, "{:,}"), label, f"of {of[name]:,}, {share}"))
    if all("parameters_kept" in row for row in rows):
        share = _range([row["parameters_kept"] for row in rows], "{:.1%}")
        tiles.append(Tile(share, "parameters", "of the decoder layers"))
    if all("kl" in row["scores"] for row in rows):
        found = [row["scores"]["kl"] for row in rows]
        detail = f"95%: {found[0]['low']:.3f} to {found[0]['high']:.3f}" if len(rows) == 1 else "to the full model"
        tiles.append(Tile(_range([one["mean"] for one in found], "{:.3f}"), "KL, nats", detail))
        same = [row["scores"]["exact_match"]["mean"] for row in rows]
        tiles.append(Tile(_range(same, "{:.0%}"), "same prediction", "as the full model"))
    if len(rows) > 1 and compared is not None:
        heads = compared.overlap["head"]["pairs"]
        tiles.append(Tile(f"{heads['mean']:.2f}", "Jaccard of heads", f"by chance {heads['chance']:.2f}"))
    return tiles


def _range(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low.rstrip('%')}–{high}"


def _asked(source: Source) -> list[tuple[str, str]]:
    """The question of the run in a few lines."""
    found = source.metadata
    summary, config = source.summary or {}, (source.setup or {}).get("config", {})
    pairs = summary.get("pairs", {})
    first = source.members[0].row
    sizes = list(dict.fromkeys(_sizes(member.row) for member in source.members))
    rows = [
        ("Model", str(summary.get("model") or found.get("model", ""))),
        ("Behaviour", str(summary.get("task") or found.get("task", ""))),
        ("Pairs", ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in pairs.items() if count)),
        ("Closed nodes", _ABLATIONS.get(found.get("ablation", ""), found.get("ablation", ""))),
        ("Size asked for", sizes[0] if len(sizes) == 1 else "differs by member"),
        ("Training", _training(config, first)),
    ]
    if (left := summary.get("left_out", {})) and any(left.values()):
        rows.append(("Left out", ", ".join(f"{count} {name} pairs" for name, count in left.items() if count)))
    return [(name, value) for name, value in rows if value]


_ABLATIONS = {
    "interchange": "interchange: their activation on the corrupted prompt",
    "zero": "zero: nothing",
    "mean": "mean: their mean over a data set",
    "mean_per_position": "mean per position: their mean at each position over a data set",
    "optimal": "optimal: a constant learned with the gates",
}


def _sizes(row: Json) -> str:
    """The sizes and penalties of one member."""
    asked = [f"{size:,} {_unit(name)}" for name, size in row.get("targets", {}).items()]
    asked += [f"penalty of {charts.GRANULARITY[name]} {weight:g}" for name, weight in row.get("penalties", {}).items()]
    return ", ".join(asked)


def _unit(name: str) -> str:
    return "site neurons" if name == "total" else charts.GRANULARITY[name]


def _training(config: Json, row: Json) -> str:
    train = config.get("train", {})
    if not train:
        return f"best at step {row['best_step']}" if row.get("best_step") else ""
    return f"{train['steps']:,} steps of {train['batch_size']} pairs, the best at step {row['best_step']}"


def _hashes(members: Mapping[str, Member]) -> list[tuple[str, str]]:
    """Hashes and identities from the first circuit file, which all circuits of a run share, and the file of each."""
    found = next(iter(members.values())).circuit.metadata
    kept = [
        key
        for key in ("format", "model", "model_revision", "adapter", "task", "ablation", "metric", "operation")
        if found.get(key)
    ]
    kept += [key for key in sorted(found) if key.endswith("_sha256") and found[key]]
    return [(key.replace("_", " "), found[key]) for key in kept]
