"""Page of a sweep: all trials in one figure, and every trial with its settings and scores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.io.files import Json
from bigcircuit.metrics.registry import page_scores
from bigcircuit.report import charts, facts, headline, page_content, score_tables, sweep_headline
from bigcircuit.report.drawing import Drawing, draw_circuits
from bigcircuit.report.facts import Fact
from bigcircuit.report.figures import Chart
from bigcircuit.report.page import write_page
from bigcircuit.report.svg import write_figures
from bigcircuit.report.sweep_figures import drawable_trials, front_chart, setting_charts, sweep_training_charts
from bigcircuit.results.pareto import dominates
from bigcircuit.results.run import RunSource, open_source
from bigcircuit.results.sweep import SweepResult, SweepTrial
from bigcircuit.results.trial_config import as_yaml


class ShownTrial(NamedTuple):
    """One trial as the page shows it."""

    number: int
    status: str
    error: str | None
    step: int
    seconds: float
    progress: str
    on_front: bool
    beaten: int | None
    """Number of a trial that is as small and as faithful, and better in one of the two; None on the front."""
    settings: Mapping[str, Any]
    changed: bool
    """Whether the trial began with other settings."""
    row: Json | None
    """Row of summary.json; None unless the trial has finished."""
    nodes: Mapping[str, int]
    """Number of nodes of the model by granularity."""
    validated: Json
    """Last validation."""
    drawing: Drawing | None
    examples: Sequence[Json]
    scores: score_tables.ScoreTable | None
    folder: str
    yaml: str


@dataclass(frozen=True)
class SweepPage:
    """Content of the page of a sweep."""

    title: str
    subtitle: str
    lead: str
    tiles: Sequence[headline.Tile]
    asked: Sequence[Fact]
    figure: Chart | None
    trials: Sequence[ShownTrial]
    """By number."""
    front: Sequence[int]
    """Numbers of the trials on the front, the smallest circuit first."""
    first: int | None
    """Number of the trial to show first."""
    together: Drawing | None
    """All circuits of the front over each other."""
    keys: Sequence[str]
    """The settings that were searched."""
    columns: Sequence[str]
    """Names of the scores, besides KL, that the table of trials shows: those that a trial has."""
    comparison: page_content.ComparedCircuits | None
    by_setting: Sequence[Chart]
    training: Sequence[Chart]
    hashes: Sequence[Fact]
    settings: Sequence[tuple[str, str]]
    versions: Mapping[str, str]

    def all_charts(self) -> list[Chart]:
        """List all figures of the page."""
        compared = self.comparison.charts if self.comparison else ()
        return [*([self.figure] if self.figure else []), *self.by_setting, *compared, *self.training]

    def drawings(self) -> dict[str, Drawing]:
        """Return all drawings by name."""
        found = {f"trial {one.number}": one.drawing for one in self.trials if one.drawing is not None}
        return found | ({"all together": self.together} if self.together else {})


def render_sweep(sweep: SweepResult, output: Path | None = None, figures: Path | None = None) -> list[Path]:
    """Write the page of a sweep, by default report.html in its folder, and its figures for papers; return the paths.

    Raises UserError naming a file of a trial that is missing or damaged.
    """
    page = sweep_page(sweep)
    written = [write_page("sweep.html", page, output or sweep.path / "report.html")]
    if figures is not None:
        written += write_figures([*page.all_charts(), *charts.map_charts(page.drawings())], figures)
    return written


def sweep_page(sweep: SweepResult) -> SweepPage:
    """Compute the content of the page of a sweep."""
    sources = {trial.number: open_source(trial.folder) for trial in sweep.front}
    circuits = {
        number: circuit for number, source in sources.items() if (circuit := source.members[0].circuit) is not None
    }
    first = sweep_headline.trial_to_show(sweep)
    drawn = _drawn(circuits, first.number if first else None)
    named = {f"trial {number}": circuit for number, circuit in circuits.items()}
    scored = {
        name for trial in sweep.trials for name in (trial.row["scores"] if trial.summary else trial.last_validation)
    }
    drawable = drawable_trials(sweep.trials)
    return SweepPage(
        title=sweep_headline.sweep_title(sweep),
        subtitle=sweep_headline.sweep_subtitle(sweep),
        lead=sweep_headline.sweep_lead(sweep),
        tiles=sweep_headline.sweep_tiles(sweep),
        asked=sweep_headline.sweep_facts(sweep),
        figure=front_chart(drawable, sweep.front, "trials") if drawable else None,
        trials=[_shown(sweep, trial, sources.get(trial.number), drawn.get(trial.number)) for trial in sweep.trials],
        front=list(circuits),
        first=first.number if first else None,
        together=draw_circuits(named) if len(named) > 1 and page_content.same_model(list(named.values())) else None,
        keys=sweep.searched,
        columns=[name for name, kind in page_scores().items() if kind.in_brief and name != "kl" and name in scored],
        comparison=page_content.compare(named),
        by_setting=setting_charts(sweep),
        training=sweep_training_charts(sweep),
        hashes=facts.hash_facts({f"trial {number}": source.members[0] for number, source in sources.items()})
        if first
        else [],
        settings=[("", json.dumps({"command": sweep.command, "sweep": sweep.search, "config": sweep.base}, indent=2))],
        versions=sweep.versions,
    )


def _drawn(circuits: Mapping[int, Circuit], first: int | None) -> dict[int, Drawing]:
    """Draw circuits within the budget of a page, the trial to show first in any case. circuits: by number of the trial."""
    found: dict[int, Drawing] = {}
    used = 0
    for number in sorted(circuits, key=lambda number: number != first):
        drawing = draw_circuits({f"trial {number}": circuits[number]})
        used += drawing.page_bytes
        if found and used > page_content.BUDGET:
            break
        found[number] = drawing
    return found


def _shown(sweep: SweepResult, trial: SweepTrial, source: RunSource | None, drawing: Drawing | None) -> ShownTrial:
    """Describe one trial. source: its run folder, for trials on the front."""
    record, summary = trial.record, trial.summary
    row = None if summary is None else {"name": str(trial.number), **trial.row}
    better = [other.number for other in sweep.front if row is not None and dominates(other.point, trial.point)]
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
        nodes={} if summary is None else summary["nodes"],
        validated=trial.last_validation,
        drawing=drawing,
        examples=source.members[0].examples if source else (),
        scores=None if summary is None or row is None else score_tables.summary_table(summary, [row]),
        folder=str(Path(sweep.path.name, trial.folder.relative_to(sweep.path))),
        yaml=as_yaml(sweep, trial) if record.status not in ("failed", "waiting") else "",
    )
