"""Figures of a sweep. Every mark is a link to its trial, such as `#trial-3`, and has a tooltip."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from bigcircuit.config.plain import without_folders
from bigcircuit.io.run_dir import read_metrics
from bigcircuit.metrics.registry import SCORES
from bigcircuit.report.axes import fit_scale
from bigcircuit.report.figures import MUTED, PAPER, SERIES, STYLE, Chart, Line, drawable, lines, new_axes
from bigcircuit.results.sweep import SweepResult, SweepTrial

FRONT, REST = SERIES[0], SERIES[5]
_NAMED = 14
"""Most trials on the front for which each has its number beside the mark."""
_KEYS = 6
"""Most settings that have a figure."""


def front_chart(trials: Sequence[SweepTrial], front: Sequence[SweepTrial], key: str = "front") -> Chart:
    """Draw neurons against KL, with the front as a line: the lowest KL of circuits up to each size, with intervals.

    Trials without held-out scores have hollow marks at their last validation. key: name of the figure's file.
    """
    figure, axes = new_axes(5.2, 4.2)
    early = [trial for trial in trials if trial.summary is None]
    rest = [trial for trial in trials if trial.summary is not None and trial not in front]
    with mpl.rc_context(STYLE):
        points = [_place(trial) for trial in trials]
        fit_scale(axes.xaxis, [size for size, _ in points])
        bounds = [trial.row["scores"]["kl"] for trial in front]
        ends = [one[end] for one in bounds for end in ("low", "high") if one[end] > 0]
        fit_scale(axes.yaxis, [kl for _, kl in points] + ends)
        for trial in early:
            _mark(axes, trial, markersize=6.5, markerfacecolor=PAPER, markeredgecolor=REST)
        for trial in rest:
            _mark(axes, trial, markersize=7, color=REST, markeredgecolor=PAPER)
        sizes, values = zip(*map(_place, front), strict=True) if front else ((), ())
        axes.plot(sizes, values, drawstyle="steps-post", color=FRONT, linewidth=1.4, zorder=2)
        for trial in front:
            kl = trial.row["scores"]["kl"]
            axes.plot([_place(trial)[0]] * 2, [kl["low"], kl["high"]], color=MUTED, linewidth=1, zorder=2)
            _mark(axes, trial, markersize=9, color=FRONT, markeredgecolor=PAPER)
            if len(front) <= _NAMED:
                axes.annotate(
                    str(trial.number), _place(trial), (6, 5), textcoords="offset points", fontsize=8, zorder=4
                )
        axes.set_xlabel("site neurons kept")
        axes.set_ylabel(SCORES["kl"].heading if early else f"held-out {SCORES['kl'].heading}")
        hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": REST}
        legend: tuple[tuple[Sequence[SweepTrial], str, dict[str, Any]], ...] = (
            (front, "on the front, with 95% intervals", {"color": FRONT}),
            (rest, "finished", {"color": REST}),
            (early, "last validation", hollow),
        )
        for shown, label, style in legend:
            if shown:
                axes.plot([], [], "o", label=label, markersize=7, **style)
        figure.legend(loc="outside upper left", ncols=3, borderaxespad=0, handletextpad=0.2, columnspacing=1.4)
    return Chart(key, "Size against faithfulness", figure)


def _mark(axes: Axes, trial: SweepTrial, **style: Any) -> None:
    (mark,) = axes.plot(*[[value] for value in _place(trial)], "o", clip_on=False, zorder=3, **style)
    _name(mark, trial)


def _name(mark: Any, trial: SweepTrial) -> None:
    """Make a mark a link to its trial, with a tooltip."""
    size, kl = _place(trial)
    kind = "" if trial.summary is not None else f" ({trial.record.status}, validation)"
    mark.set_url(f"#trial-{trial.number}")
    mark.set_gid(f"member:{trial.number}:tip:trial {trial.number}: {size:,} neurons, KL {kl:.3g}{kind}")


def _place(trial: SweepTrial) -> tuple[int, float]:
    """Neurons and KL of a trial: on held-out pairs, or of the last validation where the trial has not finished."""
    return (
        trial.point if trial.summary is not None else (trial.last_validation["kept.total"], trial.last_validation["kl"])
    )


def drawable_trials(trials: Sequence[SweepTrial]) -> list[SweepTrial]:
    """Select the trials that have scores to draw: held-out scores, or those of a validation."""
    return [t for t in trials if t.summary is not None or {"kl", "kept.total"} <= t.last_validation.keys()]


def setting_charts(sweep: SweepResult) -> list[Chart]:
    """Draw the values of each searched setting against neurons and KL of the finished trials, for the first few that vary."""
    found: list[Chart] = []
    for key in sweep.searched:
        values = {trial.number: trial.record.settings.get(key) for trial in sweep.finished}
        if len({str(value) for value in values.values()}) > 1 and len(found) < _KEYS:
            found.append(_setting(sweep, key, values))
    return found


def _setting(sweep: SweepResult, key: str, values: dict[int, Any]) -> Chart:
    """Draw two panels over the values of one setting; values that are not numbers have equal distances, in order of appearance.

    values: number of a trial -> value.
    """
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values())
    names = list(dict.fromkeys(str(value) for value in values.values()))
    figure, _ = new_axes(3.4, 3.4)
    figure.clear()
    with mpl.rc_context(STYLE):
        upper, lower = figure.subplots(2, 1, sharex=True)
        x = {number: value if numbers else names.index(str(value)) for number, value in values.items()}
        for axes, index, label in ((upper, 0, "neurons"), (lower, 1, SCORES["kl"].heading)):
            fit_scale(axes.yaxis, [trial.point[index] for trial in sweep.finished])
            axes.set_ylabel(label)
            axes.grid(axis="x", visible=False)
            for trial in sweep.finished:
                colour = FRONT if trial in sweep.front else REST
                (mark,) = axes.plot([x[trial.number]], [trial.point[index]], "o", color=colour, markersize=6,
                                    markeredgecolor=PAPER, clip_on=False)  # fmt: skip
                _name(mark, trial)
        if numbers:
            fit_scale(lower.xaxis, list(x.values()), zero=False)
        else:
            labels = [drawable(without_folders(name)[:18]) for name in names]
            lower.set_xticks(range(len(names)), labels, rotation=30 if len(names) > 4 else 0)
            lower.set_xlim(-0.5, len(names) - 0.5)
        lower.set_xlabel(key)
        figure.align_ylabels()
    return Chart(f"setting_{key}", key, figure)


def sweep_training_charts(sweep: SweepResult) -> list[Chart]:
    """Draw KL and size on the validation pairs by step, one line per trial."""
    rows = {trial: read_metrics(trial.folder / "metrics.jsonl") for trial in sweep.trials}
    found = []
    for key, title, column, y in (
        ("training_kl", "KL by step", "validation.kl", SCORES["kl"].heading),
        ("training_size", "Neurons by step", "validation.kept.total", "site neurons"),
    ):
        series = []
        for trial in sweep.trials:
            points = [(row["step"], row[column]) for row in rows[trial] if row.get(column) is not None]
            x, values = zip(*points, strict=True) if points else ((), ())
            series.append(Line(label="", x=x, y=values, tip=f"trial {trial.number}", member=trial.number))
        found.append(lines(key, title, series, "step", y, log=key == "training_kl"))
    return [chart for chart in found if chart]
