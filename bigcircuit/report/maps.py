"""Figures of cells: heat maps of similarity, and maps of kept heads, MLPs and neurons."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib import colors
from matplotlib.artist import Artist
from matplotlib.colorbar import Colorbar
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bigcircuit.report.figures import ON_DARK, ON_LIGHT, PAPER, STYLE, Chart, drawable, new_axes

CLOSED_CELL, KEPT, LEAST = "#e6eaef", "#1a7fc4", 0.3
"""Colour of a closed and of a wholly kept node, and the shade, 0 to 1, of the smallest kept part."""


def heatmap(key: str, title: str, values: Sequence[Sequence[float]], names: Sequence[str]) -> Chart:
    """Draw a square matrix of Jaccard indices, with numbers where there is room for them."""
    figure, axes = new_axes(3.6, 3.6)
    count, names = len(values), list(map(drawable, names))
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        axes.grid(visible=False)
        image = axes.imshow(np.asarray(values), vmin=0, vmax=1, cmap=_ramp())
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=24, label="Jaccard")
        _hide_outline(bar)
        shown = range(count) if count <= 12 else range(0, count, -(-count // 12))
        axes.set_xticks(list(shown), [names[i] for i in shown], rotation=45 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(list(shown), [names[i] for i in shown])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if count <= 12:
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9 if count <= 8 else 7}
            for row in range(count):
                for column in range(count):
                    value = values[row][column]
                    axes.text(column, row, f"{value:.2f}", color=ON_DARK if value > 0.55 else ON_LIGHT, **style)
    return Chart(key, title, figure)


def _hide_outline(bar: Colorbar) -> None:
    cast(Artist, bar.outline).set_visible(False)


def _ramp() -> colors.Colormap:
    return colors.LinearSegmentedColormap.from_list("kept", ["#f2f5f9", "#8ab8dc", "#0072b2", "#00416b"])


def _shades() -> colors.Colormap:
    """Make the colours of the page's drawing: from the smallest kept part to all; closed nodes are below that scale."""
    closed, kept = (np.array(colors.to_rgb(colour)) for colour in (CLOSED_CELL, KEPT))
    ends = [closed + (kept - closed) * LEAST, kept]
    return colors.LinearSegmentedColormap.from_list("kept", ends).with_extremes(under=CLOSED_CELL)


def model_map(key: str, title: str, heads: np.ndarray, mlps: np.ndarray) -> Chart:
    """Draw the share kept of every head, [L, H] (NaN where a layer has fewer), and of every MLP, [L]; the last layer on top."""
    layers, width = heads.shape
    figure, axes = new_axes(min(7.0, 1.6 + 0.22 * width), min(7.0, 1.1 + 0.22 * layers))
    with mpl.rc_context(STYLE):
        axes.grid(visible=False)
        gap = max(1, width // 16)
        columns = np.full((layers, width + 2 * gap + max(1, width // 8)), np.nan)
        columns[:, :width] = heads
        columns[:, width + gap : -gap] = mlps[:, None]
        edges = np.arange(columns.shape[1] + 1) - 0.5, np.arange(layers + 1) - 0.5
        mesh = axes.pcolormesh(*edges, columns, vmin=1e-9, vmax=1, cmap=_shades(), edgecolors=PAPER, linewidth=0.4)
        ticks = [*range(0, width, max(1, width // 8)), (width + columns.shape[1]) / 2 - 0.5]
        axes.set_xticks(ticks, [*map(str, ticks[:-1]), "MLP"])
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, shrink=0.7, aspect=14, extend="min", label="share of neurons kept")
        _hide_outline(bar)
    return Chart(key, title, figure)


def neuron_map(
    key: str, title: str, sites: Mapping[str, np.ndarray], shades: Sequence[tuple[str, float]], names: Sequence[str]
) -> Chart:
    """Draw every neuron of each site as a cell, the last layer on top.

    sites: name -> categories, uint8 [L, n]. shades, names: colour with alpha, and name of each category.
    """
    figure, _ = new_axes(7.0, 1.3 + len(sites) * (0.5 + 0.11 * len(next(iter(sites.values())))))
    figure.clear()
    colours = np.array([colors.to_rgba(colour, alpha) for colour, alpha in shades])
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        for axes, (site, categories) in zip(figure.subplots(len(sites), 1), sites.items(), strict=True):
            axes.imshow(colours[categories], aspect="auto", interpolation="nearest", origin="lower")
            axes.set(xlabel=site, ylabel="layer")
            axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.spines[:].set_visible(False)
        handles = [Patch(color=tuple(colour)) for colour in colours[1:]]
        figure.legend(handles, list(names[1:]), loc="outside upper left", ncols=4, borderaxespad=0)
    return Chart(key, title, figure)
