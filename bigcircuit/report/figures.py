"""Figures, each one function that gives a matplotlib Figure: the page shows it as SVG, and files for papers are the same.

matplotlib and not a charting script: a page with a plotting library in it would be 4.7 MB, its figures would need a script,
and PNG files of them a browser. The axes carry little ink, and series differ by marker and dash as well as by a colour that
colour-blind readers can tell apart and that is seen on light and dark paper.

What a reader may point at has a name: `set_gid("tip:text")` gives a tooltip, and `set_url` makes a mark a link (see svg.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

INK, MUTED, RULE, PAPER = "#1b1f24", "#5c6570", "#d9dde3", "#ffffff"
ON_DARK, ON_LIGHT = "#fffffe", "#000001"
"""Text, secondary text, grid and background; on the page they follow the colour scheme. Text on a
coloured mark does not."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b5609a", "#8a7a00", "#6f7782")
MARKERS, DASHES = ("o", "s", "^", "D", "v", "X"), ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


class Line(NamedTuple):
    """One series."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    tip: str = ""
    member: int | None = None
    """Marks the line as one of a member, which the page may bring forward."""


class Chart(NamedTuple):
    """A figure with what stands around it on the page."""

    key: str
    """Name of its file."""
    title: str
    figure: Figure
    note: str = ""


def new_axes(width: float = 4.6, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty figure of so many inches, in the style of all."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _thousands(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 10 else f"{value:g}"))


def lines(
    key: str, title: str, series: Sequence[Line], x: str, y: str, *, log: bool = False, marked: bool = False
) -> Chart | None:
    """A line chart from 0 (or logarithmic); None where there is nothing to draw. Members of a population are thin."""
    series = [line for line in series if len(line.x)]
    if not series:
        return None
    many = any(line.member is not None for line in series)
    figure, axes = new_axes(height=2.8 if many else 2.8 + 0.17 * (len(series) // 2))  # a legend of two columns is above
    with mpl.rc_context(STYLE):
        for index, line in enumerate(series):
            style = index % len(SERIES)
            shape = (index + index // len(SERIES)) % len(SERIES)  # the seventh series is not the first one again
            (drawn,) = axes.plot(
                line.x,
                line.y,
                label=line.label,
                color=SERIES[0 if many else style],
                linestyle="none" if len(line.x) == 1 else "-" if many else DASHES[shape],
                linewidth=1.2 if many else 1.7,
                marker="*" if len(line.x) == 1 else MARKERS[shape] if marked else None,
                markersize=13 if len(line.x) == 1 else STYLE["lines.markersize"],
                clip_on=False,
                zorder=4 if len(line.x) == 1 else 3,
            )
            member = "" if line.member is None else f"member:{line.member}:"
            drawn.set_gid(f"{member}tip:{line.tip or line.label}")
        _frame(axes, x, y, log)
        if len(series) > 1 and not many:
            figure.legend(loc="outside upper left", ncols=2, borderaxespad=0, handlelength=2.6, columnspacing=1.4)
    return Chart(key, title, figure)


def _frame(axes: Axes, x: str, y: str, log: bool) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _thousands(axes.xaxis)
    axes.set_xlim(left=0)
    axes.grid(axis="x", visible=False)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _thousands(axes.yaxis)


def scatter(members: Sequence[Mapping[str, Any]], title: str = "Size against faithfulness") -> Chart:
    """Members of a population: site neurons against held-out KL with its interval. Each is a link to its circuit.

    Members of one size, such as seeds, stand side by side.
    """
    figure, axes = new_axes()
    one_size = len({row["kept"]["total"] for row in members}) == 1
    with mpl.rc_context(STYLE):
        for index, row in enumerate(members):
            score, size, name = row["scores"]["kl"], row["kept"]["total"], row["member"]
            x = index if one_size else size
            axes.plot([x, x], [score["low"], score["high"]], color=MUTED, linewidth=1.1)
            (mark,) = axes.plot([x], [score["mean"]], "o", color=SERIES[0], markersize=8, markeredgecolor=PAPER)
            mark.set_url(f"#member-{index}")
            mark.set_gid(f"member:{index}:tip:member {name}: {size:,} neurons, KL {score['mean']:.3f}")
        axes.margins(0.08)
        _frame(axes, "member" if one_size else "site neurons kept", "held-out KL, nats", log=False)
        if one_size:
            axes.set_xlim(-0.6, len(members) - 0.4)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return Chart("size_kl", title, figure)


def heatmap(key: str, title: str, values: Sequence[Sequence[float]], names: Sequence[str]) -> Chart:
    """A square matrix of shares, such as pairwise Jaccard, with its numbers where they can be read."""
    figure, axes = new_axes(3.6, 3.2)
    count = len(values)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        axes.grid(visible=False)
        axes.imshow(np.asarray(values), vmin=0, vmax=1, cmap=_ramp())
        shown = range(count) if count <= 12 else range(0, count, -(-count // 12))
        axes.set_xticks(list(shown), [names[i] for i in shown], rotation=45 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(list(shown), [names[i] for i in shown])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if count <= 12:
            for row in range(count):
                for column in range(count):
                    value = values[row][column]
                    colour = ON_DARK if value > 0.55 else ON_LIGHT
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    return Chart(key, title, figure)


def _ramp() -> mpl.colors.Colormap:
    return mpl.colors.LinearSegmentedColormap.from_list("kept", ["#f2f5f9", "#8ab8dc", "#0072b2", "#00416b"])


def model_map(key: str, title: str, heads: np.ndarray, mlps: np.ndarray) -> Chart:
    """Share kept of every head, [L, H] (NaN where a layer has fewer), and of every MLP, [L]; the last layer on top."""
    layers, width = heads.shape
    figure, axes = new_axes(min(7.0, 1.6 + 0.22 * width), min(7.0, 1.1 + 0.22 * layers))
    with mpl.rc_context(STYLE):
        axes.grid(visible=False)
        gap = max(1, width // 16)
        columns = np.full((layers, width + 2 * gap + max(1, width // 8)), np.nan)
        columns[:, :width] = heads
        columns[:, width + gap : -gap] = mlps[:, None]
        edges = np.arange(columns.shape[1] + 1) - 0.5, np.arange(layers + 1) - 0.5
        mesh = axes.pcolormesh(*edges, columns, vmin=0, vmax=1, cmap=_ramp(), edgecolors=PAPER, linewidth=0.4)
        ticks = [*range(0, width, max(1, width // 8)), (width + columns.shape[1]) / 2 - 0.5]
        axes.set_xticks(ticks, [*map(str, ticks[:-1]), "MLP"])
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, shrink=0.7, aspect=14, label="share of neurons kept")
        bar.outline.set_visible(False)
    return Chart(key, title, figure)


def bars(key: str, title: str, names: Sequence[str], values: Mapping[str, Sequence[float]], x: str) -> Chart:
    """Horizontal bars from 0 to 1, one group a name; the first series filled, the second as a mark of comparison."""
    figure, axes = new_axes(3.6, 0.8 + 0.28 * len(names))
    with mpl.rc_context(STYLE):
        places = np.arange(len(names))[::-1]
        (label, filled), *marks = values.items()
        axes.barh(places, filled, height=0.62, color=SERIES[0], label=label)
        for index, (label, ticks) in enumerate(marks, start=1):
            axes.plot(ticks, places, "|", color=SERIES[index], markersize=13, markeredgewidth=2.2, label=label)
        for place, value in zip(places, filled, strict=True):
            axes.annotate(f"{value:.2f}", (max(value, 0), place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, names)
        axes.set_xlim(0, 1.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x)
        if marks:
            figure.legend(loc="outside upper right", ncols=2)
    return Chart(key, title, figure)
