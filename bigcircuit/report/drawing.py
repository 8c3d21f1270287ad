"""Drawing of circuits: the model as rows of heads and MLPs, and its single neurons as images.

A neuron is a pixel of a small palette PNG: a browser shows the image without a script, a layer of an 8B model takes a few
kilobytes, and a script can read the neurons back. Colours are visible on light and on dark paper; the category of a neuron is
the alpha of its pixel (`Palette.alphas`), so that reading back is exact.

The categories of one circuit are kept or not; of two circuits over each other kept by both, by the first only, by the second
only; of more circuits how many of them keep a neuron.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Colours by category: 0 is no neuron at all, 1 a closed neuron, 2 and above kept neurons."""

    colours: Sequence[str]
    alphas: Sequence[int]
    """All different."""
    names: Sequence[str]
    circuits: int


@dataclass(frozen=True)
class DrawnNode:
    """A head, or the MLP of a layer."""

    index: int
    kept: Sequence[int]
    """Number of neurons by category, from category 2 on."""
    of: int
    """Number of all neurons."""
    style: str
    """CSS: the share kept as `--k`, or a background with a part per category."""

    @property
    def total(self) -> int:
        """Number of neurons that some circuit keeps."""
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
        """Number of neurons that some circuit keeps."""
        return int((self.categories > 1).sum())

    @property
    def of(self) -> int:
        """Number of all neurons."""
        return int((self.categories > 0).sum())

    @property
    def row(self) -> np.ndarray:
        """Categories of the neurons in order, without places that are no neuron."""
        return self.categories[self.categories > 0]


@dataclass(frozen=True)
class DrawnLayer:
    """One decoder layer."""

    index: int
    heads: Sequence[DrawnNode]
    mlp: DrawnNode
    attention_grid: Grid
    """One row per head."""
    mlp_grid: Grid
    output_grid: Grid | None
    """Output dimensions of the MLP, if they have masks."""

    @property
    def kept_heads(self) -> int:
        """Number of heads with a kept neuron."""
        return sum(head.total > 0 for head in self.heads)


class Drawing(NamedTuple):
    """One or several circuits of a model, layer by layer."""

    layers: Sequence[DrawnLayer]
    palette: Palette
    circuits: int

    @property
    def page_bytes(self) -> int:
        """Approximate bytes that the drawing adds to a page."""
        heads = sum(len(layer.heads) for layer in self.layers)
        return 110 * heads + sum(1200 + len(one.attention_grid.uri) + len(one.mlp_grid.uri) for one in self.layers)


def make_palette(names: Sequence[str]) -> Palette:
    """Choose colours for circuits of these names."""
    if len(names) == 1:
        kept = [(KEPT, 255, "kept")]
    elif len(names) == 2:
        kept = [(BOTH, 255, "in both"), (FIRST, 254, f"only in {names[0]}"), (SECOND, 253, f"only in {names[1]}")]
    else:
        count = len(names)
        shades = np.linspace(90, 255, count).round().astype(int).tolist()
        kept = [(KEPT, shades[i], f"in {i + 1} of {count}") for i in range(count)]
    categories = [(CLOSED, _ABSENT_ALPHA, "no neuron"), (CLOSED, _CLOSED_ALPHA, "not kept"), *kept]
    colours, alphas, labels = zip(*categories, strict=True)
    return Palette(colours, alphas, labels, len(names))


def draw_circuits(circuits: Mapping[str, Circuit]) -> Drawing:
    """Draw circuits of one model over each other. circuits: by name."""
    shown = make_palette(list(circuits))
    wide = node_widths(next(iter(circuits.values())))
    mlps, layers = wide["mlp_neuron"], []
    for index in range(len(mlps)):
        attention = _by_head(circuits, index, wide)
        mlp = _categories(circuits, "mlp_neuron", index, mlps[index])
        layers.append(
            DrawnLayer(
                index=index,
                heads=[_node(number, row, shown) for number, row in enumerate(attention)],
                mlp=_node(index, mlp, shown),
                attention_grid=make_grid(attention, shown),
                mlp_grid=make_grid(_folded(mlp), shown),
                output_grid=_outputs(circuits, index, wide, shown),
            )
        )
    return Drawing(layers, shown, len(circuits))


def _by_head(circuits: Mapping[str, Circuit], layer: int, wide: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Categories of the neurons of attention, one row a head; in a layer without attention those of its mixer."""
    head, neuron = ("head", "attention_neuron") if wide["head"][layer] else ("mixer_head", "mixer_neuron")
    if not wide.get(head, wide["head"])[layer]:
        return np.zeros((0, 1), dtype=np.uint8)
    return _categories(circuits, neuron, layer, wide[neuron][layer]).reshape(wide[head][layer], -1)


def _outputs(
    circuits: Mapping[str, Circuit], layer: int, wide: Mapping[str, Sequence[int]], shown: Palette
) -> Grid | None:
    if any(MLP_OUTPUT not in circuit.masks for circuit in circuits.values()):
        return None
    return make_grid(_folded(_categories(circuits, MLP_OUTPUT, layer, wide[MLP_OUTPUT][layer])), shown)


def _categories(circuits: Mapping[str, Circuit], name: str, layer: int, width: int) -> np.ndarray:
    """Compute the category of every neuron of a site in one layer, uint8 [width]. name: granularity of the neurons."""
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
    """Fold a row into a rectangle about twice as wide as high; the rest of the last row is no neuron."""
    columns = 2 ** math.ceil(math.log2(math.sqrt(2 * len(categories)))) if len(categories) > 1 else 1
    padded = np.zeros(-(-len(categories) // columns) * columns, dtype=np.uint8)
    padded[: len(categories)] = categories
    return padded.reshape(-1, columns)


def make_grid(categories: np.ndarray, shown: Palette) -> Grid:
    """Encode categories, uint8 [rows, columns], as a PNG in a data URI, one pixel per neuron."""
    if not categories.size:
        categories = np.zeros((1, 1), dtype=np.uint8)
    image = Image.frombytes("P", categories.shape[::-1], categories.tobytes())
    image.putpalette([int(colour[i : i + 2], 16) for colour in shown.colours for i in (1, 3, 5)])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=bytes(shown.alphas))
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Grid(uri, categories)
