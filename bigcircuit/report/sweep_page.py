"""The page of a sweep: all trials in one figure, and each of them to be looked at."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.report import charts, facts, headline, page_content, score_tables, sweep_headline
from bigcircuit.report.drawing import Drawing, draw
from bigcircuit.report.facts import Fact
from bigcircuit.report.figures import Chart
from bigcircuit.report.page import write_page
from bigcircuit.report.svg import write_figures
from bigcircuit.report.sweep_figures import front_chart, placed, setting_charts, training_charts
from bigcircuit.results.pareto import dominates
from bigcircuit.results.run import Json, RunSource, open_source
from bigcircuit.results.sweep import SweepResult, SweepTrial
from bigcircuit.results.trial_config import as_yaml


class ShownTrial(NamedTuple):
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
    nodes: Mapping[str, int]
    """Of the model."""
    validated: Json
    drawing: Drawing | None
    examples: Sequence[Json]
    scores: score_tables.ScoreTable | None
    folder: str
    yaml: str


@dataclass(frozen=True)
class SweepPage:
    """Everything on the page."""

    title: str
    subtitle: str
    lead: str
    tiles: Sequence[headline.Tile]
    asked: Sequence[Fact]
    figure: Chart | None
    trials: Sequence[ShownTrial]
    """By number."""
    front: Sequence[int]
    """Numbers of those on the front, the smallest first."""
    first: int | None
    """The one to show first."""
    together: Drawing | None
    """All circuits of the front over each other."""
    keys: Sequence[str]
    """The settings that were searched."""
    comparison: page_content.ComparedCircuits | None
    by_setting: Sequence[Chart]
    training: Sequence[Chart]
    hashes: Sequence[Fact]
    settings: Sequence[tuple[str, str]]
    versions: Mapping[str, str]

    def all_charts(self) -> list[Chart]:
        """Every figure of the page."""
        compared = self.comparison.charts if self.comparison else ()
        return [*([self.figure] if self.figure else []), *self.by_setting, *compared, *self.training]

    def drawings(self) -> dict[str, Drawing]:
        """All drawings, by name."""
        found = {f"trial {one.number}": one.drawing for one in self.trials if one.drawing is not None}
        return found | ({"all together": self.together} if self.together else {})


def render_sweep(sweep: SweepResult, output: Path | None = None, figures: Path | None = None) -> list[Path]:
    """Write the page of a sweep, report.html in its folder by default, and its figures for papers; what was written.

    Raises UserError naming a file of a trial that is missing or damaged.
    """
    page = sweep_page(sweep)
    written = [write_page("sweep.html", page, output or sweep.path / "report.html")]
    if figures is not None:
        written += write_figures([*page.all_charts(), *charts.maps(page.drawings())], figures)
    return written


def sweep_page(sweep: SweepResult) -> SweepPage:
    """What the page of a sweep shows."""
    sources = {trial.number: open_source(trial.folder) for trial in sweep.front}
    circuits = {number: source.members[0].circuit for number, source in sources.items()}
    first = sweep_headline.first_of(sweep)
    drawn = _drawn(circuits, first.number if first else None)
    named = {f"trial {number}": circuit for number, circuit in circuits.items()}
    there = placed(sweep.trials)
    return SweepPage(
        title=sweep_headline.title(sweep),
        subtitle=sweep_headline.subtitle(sweep),
        lead=sweep_headline.lead(sweep),
        tiles=sweep_headline.tiles(sweep),
        asked=sweep_headline.asked(sweep),
        figure=front_chart(there, sweep.front, "trials") if there else None,
        trials=[_shown(sweep, trial, sources.get(trial.number), drawn.get(trial.number)) for trial in sweep.trials],
        front=list(circuits),
        first=first.number if first else None,
        together=draw(named) if len(named) > 1 and page_content.same_model(list(named.values())) else None,
        keys=sweep.searched,
        comparison=page_content.comparison(named),
        by_setting=setting_charts(sweep),
        training=training_charts(sweep),
        hashes=facts.hashes({f"trial {number}": source.members[0] for number, source in sources.items()})
        if first
        else [],
        settings=[("", json.dumps({"command": sweep.command, "sweep": sweep.search, "config": sweep.base}, indent=2))],
        versions=sweep.versions,
    )


def _drawn(circuits: Mapping[int, Any], first: int | None) -> dict[int, Drawing]:
    """Drawings within the budget of a page, that of the trial to be shown first in any case."""
    found, used = {}, 0
    for number in sorted(circuits, key=lambda number: number != first):
        drawing = draw({f"trial {number}": circuits[number]})
        used += drawing.bytes
        if found and used > page_content.BUDGET:
            break
        found[number] = drawing
    return found


def _shown(sweep: SweepResult, trial: SweepTrial, source: RunSource | None, drawing: Drawing | None) -> ShownTrial:
    record, finished = trial.record, trial.summary is not None
    better = [other.number for other in sweep.front if finished and dominates(other.point, trial.point)]
    row = {"name": str(trial.number), **trial.row} if finished else None
    return ShownTrial(
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
        nodes=trial.summary["nodes"] if finished else {},
        validated=trial.last_validation,
        drawing=drawing,
        examples=source.members[0].examples if source else (),
        scores=score_tables.summary_table(trial.summary, [row]) if finished else None,
        folder=str(trial.folder),
        yaml=as_yaml(sweep, trial) if record.status not in ("failed", "waiting") else "",
    )
