"""Line, scatter and bar charts as matplotlib figures: pages show them as SVG, and files for papers are the same figures.

matplotlib and not a charting script: a page with a plotting library in it would be 4.7 MB, its figures would need a script,
and PNG files of them a browser. The axes carry little ink, and series differ by marker and dash as well as by a colour that
colour-blind readers can tell apart and that is visible on light and dark paper.

Marks have names for tooltips, `set_gid("tip:text")`, and may be links, `set_url` (see svg.py).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bigcircuit.metrics.registry import SCORES
from bigcircuit.report.axes import make_linear, make_logarithmic

INK, MUTED, RULE, PAPER = "#1b1f24", "#5c6570", "#d9dde3", "#ffffff"
ON_DARK, ON_LIGHT = "#fffffe", "#000001"
"""Colours of text on a dark or light mark, which do not follow the colour scheme of the page; INK, MUTED, RULE and PAPER (text,
secondary text, grid, background) do."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b5609a", "#8a7a00", "#6f7782")
MARKERS, DASHES = ("o", "s", "^", "D", "v", "X"), ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,  # names may hold dollars
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
    """Index of the line's circuit among several circuits: the page can bring its lines forward."""
    kind: str = "line"
    """`line`; `faint`, which is behind all others; or `star`, a single mark."""
    end: str = ""
    """Name beside the last point."""
    band: Sequence[tuple[float, float]] = ()
    """Interval of every point, or none."""


class Chart(NamedTuple):
    """A figure with its title and note on the page."""

    key: str
    """Name of the figure's file."""
    title: str
    figure: Figure
    note: str = ""


def drawable(text: str) -> str:
    """Replace characters that XML and fonts cannot have, such as control characters in a name, by a sign."""
    return _UNDRAWABLE.sub("\ufffd", text)


_UNDRAWABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def new_axes(width: float = 4.6, height: float = 2.9) -> tuple[Figure, Axes]:
    """Make an empty figure in the common style. width, height: inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def lines(
    key: str,
    title: str,
    series: Sequence[Line],
    x: str,
    y: str,
    *,
    log: bool = False,
    log_x: bool = False,
    marked: bool = False,
    note: str = "",
) -> Chart | None:
    """Draw a line chart; None where no series has points. Lines of one label share an entry of the legend.

    x, y: labels of the axes. log, log_x: whether the axes are logarithmic where all values are positive and more than five times
    apart; else they begin at 0. marked: whether points have markers.
    """
    series = [
        line._replace(label=drawable(line.label), tip=drawable(line.tip), end=drawable(line.end))
        for line in series
        if len(line.x)
    ]
    if not series:
        return None
    labels = list(dict.fromkeys(line.label for line in series))
    figure, axes = new_axes(height=2.8 + 0.17 * (len(labels) // 2))  # a legend of two columns is above
    with mpl.rc_context(STYLE):
        strong = list(dict.fromkeys(line.label for line in series if line.kind != "faint"))
        places = {label: index for index, label in enumerate(strong)}
        handles = {line.label: _draw(axes, line, places.get(line.label, 0), marked) for line in reversed(series)}
        _frame(
            axes,
            x,
            y,
            log and _far_apart([value for line in series for value in line.y]),
            log_x and _far_apart([value for line in series for value in line.x]),
        )
        _name_ends(axes, [line for line in series if line.end])
        if len(labels) > 1:
            wide = max(map(len, labels)) > 34
            figure.legend(
                [handles[label] for label in labels],
                labels,
                loc="outside upper left",
                ncols=1 if wide else 2,
                borderaxespad=0,
                handlelength=2.6,
                columnspacing=1.4,
            )
    return Chart(key, drawable(title), figure, note)


def _draw(axes: Axes, line: Line, place: int, marked: bool) -> Any:
    """Draw one series. place: index of its label; lines of several circuits differ in colour and share dash and marker."""
    shape = (place + place // len(SERIES)) % len(SERIES)  # the seventh series is not the first one again
    colour = _colour(line, place)
    style: dict[str, Any] = {"linestyle": DASHES[0 if line.member is not None else shape], "zorder": 3}
    if marked:
        style |= {"marker": MARKERS[shape]}
    if line.kind == "faint":
        colour = MUTED if line.member is None else colour
        style = {"linestyle": "-", "linewidth": 0.9, "alpha": 0.5, "zorder": 2}
    elif line.kind == "star":
        style = {"linestyle": "none", "marker": "*", "markersize": 13, "zorder": 5}
    if line.band:
        axes.vlines(line.x, *zip(*line.band, strict=True), color=colour, linewidth=1.1, alpha=0.7, zorder=1)
    (drawn,) = axes.plot(line.x, line.y, color=colour, clip_on=False, **style)
    member = "" if line.member is None else f"member:{line.member}:"
    drawn.set_gid(f"{member}tip:{line.tip or line.label}")
    return drawn


def _colour(line: Line, place: int) -> str:
    return SERIES[(place if line.member is None else line.member) % len(SERIES)]


def _far_apart(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis suits values: all are positive, and more than five times apart."""
    return min(values) > 0 and max(values) > 5 * min(values)


def _name_ends(axes: Axes, series: Sequence[Line]) -> None:
    """Write names beside the last points, moved apart where they would overlap."""
    gap, last = 0.08, -1.0
    axes.get_ylim()  # brings the transformation up to date
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [(float(to_axes.transform((line.x[-1], line.y[-1]))[1]), line) for line in series]
    places.sort(key=lambda place: place[0])
    over = max(0.0, gap * (len(places) - 1) - (1 - places[0][0])) if places else 0.0
    for at, line in places:
        last = max(at - over, last + gap, 0.0)
        leader: dict[str, Any] = {
            "arrowstyle": "-",
            "color": _colour(line, 0),
            "linewidth": 0.8,
            "shrinkA": 2,
            "shrinkB": 3,
        }
        leader["relpos"] = (0, 0.5)
        end, place = (line.x[-1], line.y[-1]), (1.06, last)
        axes.annotate(line.end, end, place, textcoords="axes fraction", va="center", fontsize=7.5, arrowprops=leader)


def _frame(axes: Axes, x: str, y: str, log: bool, log_x: bool = False) -> None:
    """Label the axes and set their scales, after everything is drawn."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="x", visible=False)
    for axis, logarithmic in ((axes.xaxis, log_x), (axes.yaxis, log)):
        if logarithmic:
            make_logarithmic(axis)
        else:
            make_linear(axis, integer=axis is axes.xaxis)
    if not log_x:
        axes.set_xlim(left=0)
    if not log:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))


def scatter(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw several circuits: site neurons against held-out KL with its interval; each mark is a link to its circuit.

    rows: rows of summary.json with a `name`. Circuits of one size, such as those of several seeds, are drawn side by side.
    """
    figure, axes = new_axes()
    one_size = len({row["kept"]["total"] for row in rows}) == 1
    with mpl.rc_context(STYLE):
        for index, row in enumerate(rows):
            score, size, name = row["scores"]["kl"], row["kept"]["total"], drawable(row["name"])
            x = index if one_size else size
            axes.plot([x, x], [score["low"], score["high"]], color=MUTED, linewidth=1.1)
            (mark,) = axes.plot([x], [score["mean"]], "o", color=SERIES[0], markersize=8, markeredgecolor=PAPER)
            mark.set_url(f"#member-{index}")
            mark.set_gid(f"member:{index}:tip:{name}: {size:,} neurons, KL {score['mean']:.3f}")
        axes.margins(0.08)
        _frame(axes, "" if one_size else "site neurons kept", f"held-out {SCORES['kl'].heading}", log=False)
        if one_size:
            axes.set_xlim(-0.6, len(rows) - 0.4)
            shown = range(0, len(rows), -(-len(rows) // 8))
            named = [drawable(rows[index]["name"][-16:]) for index in shown]
            axes.set_xticks(shown, named, rotation=30 if len("".join(named)) > 40 else 0)
    return Chart("size_kl", "KL of each circuit" if one_size else "Size against faithfulness", figure)


def bars(key: str, title: str, names: Sequence[str], values: Mapping[str, Sequence[float]], x: str) -> Chart:
    """Draw horizontal bars from 0 to 1, one group per name; the first series is filled, further ones are marks for comparison.

    values: label of a series -> a value per name. x: label of the axis.
    """
    figure, axes = new_axes(3.6, 0.8 + 0.28 * len(names))
    with mpl.rc_context(STYLE):
        places = np.arange(len(names))[::-1]
        (label, filled), *marks = values.items()
        axes.barh(places, filled, height=0.62, color=SERIES[0], label=label)
        for index, (label, ticks) in enumerate(marks, start=1):
            axes.plot(ticks, places, "|", color=SERIES[index], markersize=13, markeredgewidth=2.2, label=label)
        for place, value in zip(places, filled, strict=True):
            axes.annotate(f"{value:.2f}", (max(value, 0), place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, list(map(drawable, names)))
        axes.set_xlim(0, 1.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x)
        if marks:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles[::-1], labels[::-1], loc="outside upper right", ncols=2)
    return Chart(key, title, figure)
