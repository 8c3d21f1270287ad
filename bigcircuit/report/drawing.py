"""The model as rows of heads and MLPs, and its single neurons as images.

A neuron is a pixel of a small palette PNG: a browser shows it without a script, layers stay a few kilobytes at the size of
an 8B model, and a script can read it back. Colours are seen on light and on dark paper; the category of a neuron is in the
alpha of its pixel (`Palette.alphas`), so that reading back is exact.

One circuit is drawn as kept or not. Two are drawn over each other: kept by both, by the first only, by the second only. More
are drawn by how many of them keep a neuron.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.model.granularity import MLP_OUTPUT
from bigcircuit.report.maps import KEPT, LEAST
from bigcircuit.results.run import node_widths

BOTH, FIRST, SECOND, CLOSED = "#009e73", "#0072b2", "#d55e00", "#808894"
_ABSENT_ALPHA, _CLOSED_ALPHA = 0, 48


class Palette(NamedTuple):
    """Colours by category: 0 is no neuron at all, 1 a closed one, from 2 on those that are kept."""

    colours: Sequence[str]
    alphas: Sequence[int]
    """All different."""
    names: Sequence[str]
    circuits: int


class DrawnNode(NamedTuple):
    """A head, or the MLP of a layer."""

    index: int
    kept: Sequence[int]
    """Neurons of each category that is kept."""
    of: int
    style: str
    """CSS: how much is kept as `--k`, or a background with a part for each category."""

    @property
    def total(self) -> int:
        """Neurons that some circuit keeps."""
        return sum(self.kept)


class Grid(NamedTuple):
    """An image of neurons, row by row."""

    uri: str
    categories: np.ndarray
    """uint8 [rows, columns]"""

    @property
    def rows(self) -> int:
        return self.categories.shape[0]

    @property
    def columns(self) -> int:
        return self.categories.shape[1]

    @property
    def kept(self) -> int:
        """Neurons that some circuit keeps."""
        return int((self.categories > 1).sum())

    @property
    def of(self) -> int:
        return int((self.categories > 0).sum())

    @property
    def row(self) -> np.ndarray:
        """Categories of the neurons one after the other, without the places that are no neuron."""
        return self.categories[self.categories > 0]


class DrawnLayer(NamedTuple):
    """One decoder layer."""

    index: int
    heads: Sequence[DrawnNode]
    mlp: DrawnNode
    attention_grid: Grid
    """One row a head."""
    mlp_grid: Grid
    output_grid: Grid | None
    """Output dimensions of the MLP, where they have masks."""

    @property
    def kept_heads(self) -> int:
        """Heads of which something is kept."""
        return sum(head.total > 0 for head in self.heads)


class Drawing(NamedTuple):
    """A model with one or several circuits in it; the first layer first."""

    layers: Sequence[DrawnLayer]
    palette: Palette
    circuits: int

    @property
    def bytes(self) -> int:
        """About how much of a page it takes."""
        heads = sum(len(layer.heads) for layer in self.layers)
        return 110 * heads + sum(1200 + len(one.attention_grid.uri) + len(one.mlp_grid.uri) for one in self.layers)


def palette(names: Sequence[str]) -> Palette:
    """How one, two or more circuits of these names are shown."""
    if len(names) == 1:
        kept = [(KEPT, 255, "kept")]
    elif len(names) == 2:
        kept = [(BOTH, 255, "in both"), (FIRST, 254, f"only in {names[0]}"), (SECOND, 253, f"only in {names[1]}")]
    else:
        count = len(names)
        shades = np.linspace(90, 255, count).round().astype(int).tolist()
        kept = [(KEPT, shades[i], f"in {i + 1} of {count}") for i in range(count)]
    rows = [(CLOSED, _ABSENT_ALPHA, "no neuron"), (CLOSED, _CLOSED_ALPHA, "not kept"), *kept]
    return Palette(*zip(*rows, strict=True), len(names))


def draw(circuits: Mapping[str, Circuit]) -> Drawing:
    """Draw circuits of one model, by name."""
    shown = palette(list(circuits))
    first = next(iter(circuits.values()))
    wide = node_widths(first)
    heads, mlps = (wide[name] for name in ("head", "mlp_neuron"))
    layers = []
    for index in range(len(heads)):
        attention = _categories(circuits, "attention_neuron", index, wide["attention_neuron"][index])
        attention = attention.reshape(heads[index], -1)
        mlp = _categories(circuits, "mlp_neuron", index, mlps[index])
        layers.append(
            DrawnLayer(
                index,
                [_node(number, row, shown) for number, row in enumerate(attention)],
                _node(index, mlp, shown),
                grid(attention, shown),
                grid(_folded(mlp), shown),
                _outputs(circuits, index, wide, shown),
            )
        )
    return Drawing(layers, shown, len(circuits))


def _outputs(
    circuits: Mapping[str, Circuit], layer: int, wide: Mapping[str, Sequence[int]], shown: Palette
) -> Grid | None:
    if any(MLP_OUTPUT not in circuit.masks for circuit in circuits.values()):
        return None
    return grid(_folded(_categories(circuits, MLP_OUTPUT, layer, wide[MLP_OUTPUT][layer])), shown)


def _categories(circuits: Mapping[str, Circuit], name: str, layer: int, width: int) -> np.ndarray:
    """Category of every neuron of a site, uint8 [width]."""
    masks = np.stack([circuit.masks[name][layer, :width].numpy() for circuit in circuits.values()]).astype(int)
    neither, second, first, both = 1, 4, 3, 2
    two = np.array([[neither, second], [first, both]])
    codes = two[masks[0], masks[1]] if len(masks) == 2 else masks.sum(0) + 1
    return codes.astype(np.uint8)


def _node(index: int, categories: np.ndarray, shown: Palette) -> DrawnNode:
    counts = np.bincount(categories, minlength=len(shown.names))
    kept = counts[2:].tolist()
    return DrawnNode(index, kept, len(categories), _style(kept, max(len(categories), 1), two=shown.circuits == 2))


def _style(kept: Sequence[int], of: int, two: bool) -> str:
    if not two:
        share = sum((index + 1) * count for index, count in enumerate(kept)) / (len(kept) * of)
        return f"--k: {LEAST + (1 - LEAST) * share:.2f}" if share else ""
    stops, at = [], 0.0
    for count, name in zip(kept, ("both", "first", "second"), strict=True):
        stops.append(f"var(--{name}) {at:.0f}% {(at := at + 100 * count / of):.0f}%")
    return f"background: linear-gradient(90deg, {', '.join(stops)}, var(--cell) 0)" if sum(kept) else ""


def _folded(categories: np.ndarray) -> np.ndarray:
    """A long row as a rectangle about twice as wide as high; what is left of the last row is no neuron."""
    columns = 2 ** math.ceil(math.log2(math.sqrt(2 * len(categories)))) if len(categories) > 1 else 1
    padded = np.zeros(-(-len(categories) // columns) * columns, dtype=np.uint8)
    padded[: len(categories)] = categories
    return padded.reshape(-1, columns)


def grid(categories: np.ndarray, shown: Palette) -> Grid:
    """Categories, uint8 [rows, columns], as a PNG in a data URI: a pixel a neuron."""
    image = Image.frombytes("P", categories.shape[::-1], categories.tobytes())
    image.putpalette([int(colour[i : i + 2], 16) for colour in shown.colours for i in (1, 3, 5)])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=bytes(shown.alphas))
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Grid(uri, categories)
