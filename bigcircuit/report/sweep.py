"""The page of a sweep: all trials in one figure, and each of them to be looked at."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.report import charts, evaluated, headline, views
from bigcircuit.report.drawing import Drawing, draw
from bigcircuit.report.figures import Chart
from bigcircuit.report.page import write_page
from bigcircuit.report.sources import Json, Source, open_source
from bigcircuit.report.svg import write_figures
from bigcircuit.report.sweep_figures import front_chart, placed, setting_charts, training_charts
from bigcircuit.sweep.folder import SweepFolder, Trial
from bigcircuit.sweep.front import dominates
from bigcircuit.sweep.reproduce import as_yaml

_GOOD = 0.1
"""Held-out KL in nats: the smallest circuit that has at most this is shown first."""


class Shown(NamedTuple):
    """One trial on the page."""

    number: int
    status: str
    error: str | None
    step: int
    seconds: float
    progress: str
    on_front: bool
    beaten: int | None
    """Another trial that is as small and as faithful, and better in one; None on the front."""
    settings: Mapping[str, Any]
    changed: bool
    """Whether it began with other settings."""
    row: Json | None
    """Its row of summary.json."""
    validated: Json
    drawing: Drawing | None
    examples: Sequence[Json]
    scores: evaluated.Scored | None
    folder: str
    yaml: str


@dataclass(frozen=True)
class SweepPage:
    """Everything on the page."""

    title: str
    subtitle: str
    lead: str
    tiles: Sequence[headline.Tile]
    asked: Sequence[tuple[str, str]]
    figure: Chart | None
    trials: Sequence[Shown]
    """By number."""
    front: Sequence[int]
    """Numbers of those on the front, the smallest first."""
    first: int | None
    """The one to show first."""
    together: Drawing | None
    """All circuits of the front over each other."""
    nodes: Mapping[str, int]
    keys: Sequence[str]
    """The settings that were searched."""
    comparison: views.Comparison | None
    by_setting: Sequence[Chart]
    training: Sequence[Chart]
    hashes: Sequence[tuple[str, str]]
    settings: str
    versions: Mapping[str, str]

    def all_charts(self) -> list[Chart]:
        """Every figure of the page."""
        compared = self.comparison.charts if self.comparison else ()
        return [*([self.figure] if self.figure else []), *self.by_setting, *compared, *self.training]

    def drawings(self) -> dict[str, Drawing]:
        """The drawings of single circuits, by name."""
        return {f"trial {one.number}": one.drawing for one in self.trials if one.drawing is not None}


def render_sweep(sweep: SweepFolder, output: Path | None = None, figures: Path | None = None) -> list[Path]:
    """Write the page of a sweep, report.html in its folder by default, and its figures for papers; what was written.

    Raises UserError naming a file of a trial that is missing or damaged.
    """
    page = sweep_page(sweep)
    written = [write_page("sweep.html", page, output or sweep.path / "report.html")]
    if figures is not None:
        written += write_figures([*page.all_charts(), *charts.maps(page.drawings())], figures)
    return written


def sweep_page(sweep: SweepFolder) -> SweepPage:
    """What the page of a sweep shows."""
    sources = {trial.number: open_source(trial.folder) for trial in sweep.front}
    circuits = {number: source.members[0].circuit for number, source in sources.items()}
    first = next((t for t in sweep.front if t.point[1] <= _GOOD), sweep.front[-1] if sweep.front else None)
    drawn = _drawn(circuits, first.number if first else None)
    named = {f"trial {number}": circuit for number, circuit in circuits.items()}
    there = placed(sweep.trials)
    return SweepPage(
        title=f"{_task(sweep)}: {len(sweep.trials)} trials",
        subtitle=_short(sweep.base["model"]["path"]),
        lead=_lead(sweep, first),
        tiles=_tiles(sweep),
        asked=_asked(sweep),
        figure=front_chart(there, sweep.front, "trials") if there else None,
        trials=[_shown(sweep, trial, sources.get(trial.number), drawn.get(trial.number)) for trial in sweep.trials],
        front=list(circuits),
        first=first.number if first else None,
        together=draw(named) if len(named) > 1 and views.same_model(list(named.values())) else None,
        nodes=first.summary["nodes"] if first else {},
        keys=sweep.searched,
        comparison=views.comparison(named),
        by_setting=setting_charts(sweep),
        training=training_charts(sweep),
        hashes=headline.hashes(sources[first.number]) if first else [],
        settings=json.dumps({"command": sweep.command, "sweep": sweep.search, "config": sweep.base}, indent=2),
        versions=sweep.versions,
    )


def _drawn(circuits: Mapping[int, Any], first: int | None) -> dict[int, Drawing]:
    """Drawings within the budget of a page, that of the trial to be shown first in any case."""
    found, used = {}, 0
    for number in sorted(circuits, key=lambda number: number != first):
        drawing = draw({f"trial {number}": circuits[number]})
        used += drawing.bytes
        if found and used > views.BUDGET:
            break
        found[number] = drawing
    return found


def _shown(sweep: SweepFolder, trial: Trial, source: Source | None, drawing: Drawing | None) -> Shown:
    record, finished = trial.record, trial.summary is not None
    better = [other.number for other in sweep.front if finished and dominates(other.point, trial.point)]
    row = {"name": str(trial.number), **trial.row} if finished else None
    return Shown(
        number=trial.number,
        status=record.status,
        error=record.error,
        step=record.step,
        seconds=record.seconds,
        progress=f"{record.step:,} of {record.steps:,} steps" if record.steps else "not begun",
        on_front=source is not None,
        beaten=better[0] if better else None,
        settings=record.settings,
        changed=record.drawn != record.settings,
        row=row,
        validated=trial.validated,
        drawing=drawing,
        examples=source.members[0].examples if source else (),
        scores=evaluated.summary_table(trial.summary, [row]) if finished else None,
        folder=str(trial.folder),
        yaml=as_yaml(sweep, trial) if record.status not in ("failed", "waiting") else "",
    )


def _task(sweep: SweepFolder) -> str:
    task = sweep.base["task"]
    return Path(task["path"]).stem if task.get("path") else task["name"]


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _lead(sweep: SweepFolder, first: Trial | None) -> str:
    """What came of it, in words."""
    done, of = len(sweep.finished), len(sweep.trials)
    if first is None:
        return f"No trial has finished yet, of {of} that have begun."
    said = f"{done} of {of} trials have finished" if done < of else f"All {of} trials have finished"
    (kept, kl), whole = first.point, first.summary["nodes"]["total"]
    reached = f"a held-out KL of at most {_GOOD:g} nats" if kl <= _GOOD else "the lowest held-out KL"
    return (
        f"{said}; {len(sweep.front)} are on the front: no other circuit is as small and as faithful. The smallest with {reached} "
        f"keeps {kept:,} of {whole:,} neurons (trial {first.number}, KL {kl:.2g})."
    )


def _tiles(sweep: SweepFolder) -> list[headline.Tile]:
    counted = Counter(trial.record.status for trial in sweep.trials)
    found = [
        headline.Tile(str(len(sweep.trials)), "trials", ", ".join(f"{n} {status}" for status, n in counted.items()))
    ]
    if sweep.front:
        rows = [trial.row for trial in sweep.front]
        of = sweep.front[0].summary["nodes"]
        heads, total = ([row["kept"][name] for row in rows] for name in ("head", "total"))
        found += [
            headline.Tile(str(len(rows)), "on the front", "beaten by none"),
            headline.Tile(headline.spread(total, "{:,}"), "neurons", f"of {of['total']:,}, on the front"),
            headline.Tile(headline.spread(heads, "{:,}"), "heads", f"of {of['head']:,}, on the front"),
            headline.Tile(headline.spread([t.point[1] for t in sweep.front], "{:.2g}"), "KL, nats", "on the front"),
        ]
    return found


def _asked(sweep: SweepFolder) -> list[tuple[str, str]]:
    """The question, and what was searched. A setting that was searched is not said as if it were one for all."""
    base, search = sweep.base, sweep.search
    ablation = base["ablation"]["kind"] + ("_per_position" if base["ablation"]["per_position"] else "")
    pairs = next((t.summary["pairs"] for t in sweep.finished), {})
    algorithm = search["search"] if search["search"] == "grid" else f"{search['search']}, seed {search['seed']}"
    scheduler = search.get("scheduler", "none")
    rows = [
        ("Model", "model.path", base["model"]["path"]),
        ("Behaviour", "task.name", base["task"].get("path") or base["task"]["name"]),
        ("Pairs", "task.size", ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in pairs.items() if n)),
        ("Closed nodes", "ablation.kind", headline.ABLATIONS.get(ablation, ablation)),
        ("Training", "train.steps", f"{base['train']['steps']:,} steps of {base['train']['batch_size']} pairs"),
        ("Search", "", algorithm),
        ("Stopped early", "", "" if scheduler == "none" else f"by {scheduler}, which compares {search['metric']}"),
        *((key, "", _domain(domain)) for key, domain in search["space"].items()),
    ]
    return [(name, value) for name, key, value in rows if value and key not in search["space"]]


def _domain(domain: Any) -> str:
    """What a setting was drawn from, in words."""
    if not isinstance(domain, Mapping):
        return ", ".join("none" if value is None else str(value) for value in domain)
    kind, (low, high) = next((kind, ends) for kind, ends in domain.items() if ends is not None)
    return f"{low:g} to {high:g}, {kind.replace('_', '-')}"
