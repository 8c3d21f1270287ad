"""Draw pareto.svg: held-out KL against neurons, heads and parameters kept; a row per pair file, a line per method."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from benchmarks.fronts import SIZES, Row, front, of

_LABELS = {"neurons": "neurons kept", "heads": "heads kept", "parameters": "parameters kept"}
STYLES = {
    "default": {"color": "#0072b2", "lw": 2.2, "marker": "o", "ms": 5, "zorder": 5},
    "paper": {"color": "#d55e00", "lw": 1.8, "marker": "s", "ms": 4.5, "zorder": 4},
    "default, few heads": {"color": "#56a0d6", "lw": 1.3, "marker": "s", "ms": 3.5, "zorder": 4},
    "default, fitted to the held-out pairs": {"color": "#0072b2", "lw": 0.8, "ls": ":", "marker": "o", "ms": 2.5},
    "sigmoid top-k, any size": {"color": "#009e73", "lw": 1.3, "marker": "^", "ms": 3.5},
    "straight-through top-k, any size": {"color": "#b5609a", "lw": 1.3, "marker": "v", "ms": 3.5},
    "integrated gradients": {"color": "#8a7a00", "lw": 1.3, "ls": "--", "marker": "D", "ms": 3},
    "attribution patching": {"color": "#56b4e9", "lw": 1.1, "ls": "--", "marker": "P", "ms": 3.5},
    "head importance": {"color": "#1b1f24", "lw": 1.1, "ls": ":", "marker": "X", "ms": 3.5},
    "activation magnitude": {"color": "#6f7782", "lw": 1.1, "ls": "-.", "marker": ".", "ms": 4},
    "random": {"color": "#b4bbc4", "lw": 1.1, "marker": ".", "ms": 4},
}
"""Method -> style of its line, in the order of the tables. Learned masks are solid, rankings dashed, random is grey."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the plot in the format of the file's suffix; the same rows give the same file."""
    files = list(dict.fromkeys(row["file"] for row in rows))
    methods = [name for name in STYLES if any(row["method"] == name for row in rows)]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fronts", "font.size": 9, "axes.grid": True,
                         "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}):  # fmt: skip
        figure = Figure(figsize=(12, 0.8 + 2.5 * len(files)), layout="constrained")
        panels = figure.subplots(len(files), len(SIZES), squeeze=False, sharey="row")
        for line, file in zip(panels, files, strict=True):
            found = {method: of(rows, file, method) for method in methods}
            for panel, size in zip(line, SIZES, strict=True):
                for method, mine in found.items():
                    if points := front(mine, size):
                        panel.plot(*zip(*points, strict=True), **STYLES[method])
                _frame(panel, size)
            line[0].set_title(file, loc="left", fontsize=9, fontweight="bold")
            line[0].set_ylabel("held-out KL, nats")
        handles = [Line2D([], [], label=method, **STYLES[method]) for method in methods]
        figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _frame(panel: Axes, size: str) -> None:
    panel.set_yscale("log")
    panel.set_xlim(left=0)
    panel.set_title(_LABELS[size], loc="right", fontsize=8, color="#5c6570")
    if size == "parameters":
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
