"""Picture of a circuit as SVG: a row a layer, a cell a head and one for the MLP, the darker the more of its neurons are kept."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from torch import Tensor

from bigcircuit.circuit.nodes import kept_nodes
from bigcircuit.model.granularity import LayerShape

_CELL, _GAP, _MLP, _LEFT, _TOP = 14, 3, 3, 34, 18
"""Pixels of a cell and between cells, cells that an MLP is wide, room for names at the left and on top."""
_LEAST = 0.3
"""Opacity of the smallest kept part."""


def circuit_svg(masks: Mapping[str, Tensor], shapes: Sequence[LayerShape], title: str) -> str:
    """Draw a circuit. Colours are seen on light and on dark paper; every kept cell has its name and numbers as a title."""
    heads = max(shape.heads for shape in shapes)
    step = _CELL + _GAP
    mlp_at = _LEFT + heads * step + 2 * _GAP
    width, height = mlp_at + _MLP * step, _TOP + len(shapes) * step
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'font-family="sans-serif" font-size="10" fill="#6b7480"><title>{escape(title)}</title>',
        f'<text x="{_LEFT}" y="11">heads</text><text x="{mlp_at}" y="11">MLP</text>',
    ]
    kept = {(row.layer, row.place): row for row in kept_nodes(masks, shapes, "head")}
    mlps = {row.layer: row for row in kept_nodes(masks, shapes, "mlp")}
    for layer, shape in enumerate(shapes):
        y = _TOP + layer * step
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 11}" text-anchor="end">L{layer}</text>')
        cells = [(_LEFT + index * step, _CELL, kept.get((layer, index))) for index in range(shape.heads)]
        for x, wide, row in [*cells, (mlp_at, _MLP * step - _GAP, mlps.get(layer))]:
            box = f'<rect x="{x}" y="{y}" width="{wide}" height="{_CELL}" rx="2"'
            parts.append(f'{box} fill="#808894" fill-opacity=".2"/>')
            if row:
                shade = _LEAST + (1 - _LEAST) * row.neurons / row.of
                told = f"{row.name}: {row.neurons} of {row.of} neurons"
                parts.append(f'{box} fill="#1a7fc4" fill-opacity="{shade:.2f}"><title>{told}</title></rect>')
    return "".join(parts) + "</svg>"
