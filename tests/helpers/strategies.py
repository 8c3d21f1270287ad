"""Strategies of hypothesis that several test files draw from."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from bigcircuit.circuit.masks import complete_masks
from bigcircuit.model.granularity import LayerShape


@st.composite
def circuits(draw: st.DrawFn) -> tuple[dict[str, Tensor], list[LayerShape]]:
    """Draw a circuit and the shapes of its one to three layers of different widths."""
    head_dim = draw(st.integers(1, 3))
    shapes = []
    for _ in range(draw(st.integers(1, 3))):
        kv_heads, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        shapes.append(LayerShape(kv_heads * per_group, kv_heads, head_dim, draw(st.integers(1, 6)), 4))
    widths = {
        "attention_neuron": [s.heads * s.head_dim for s in shapes],
        "mlp_neuron": [s.intermediate for s in shapes],
    }
    masks = {}
    for name, sizes in widths.items():
        masks[name] = torch.zeros(len(shapes), max(sizes), dtype=torch.bool)
        for layer, size in enumerate(sizes):
            masks[name][layer, :size] = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return complete_masks(masks, shapes), shapes
