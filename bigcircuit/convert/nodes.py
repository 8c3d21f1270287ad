"""Heads and MLPs as other tools name them, which of them lie on kept paths, and the masks they make."""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from bigcircuit.circuit.controls import consistent
from bigcircuit.gates.discretise import Masks
from bigcircuit.model.granularity import GRANULARITIES, LayerShape


class Node(NamedTuple):
    """A query head, or the MLP of a layer."""

    layer: int
    head: int | None
    """None for the MLP."""

    @property
    def place(self) -> tuple[int, bool]:
        """Nodes write to those of later places: heads of a layer, its MLP, heads of the next one."""
        return self.layer, self.head is None


START, END = Node(-1, None), Node(sys.maxsize, None)
"""The embeddings, and what the vocabulary projection reads."""
Edge = tuple[Node, Node]
"""Writer and reader."""


class KeptNodes(NamedTuple):
    """What a file of another tool keeps."""

    nodes: set[Node]
    notes: Sequence[str] = ()
    """What its user has to know, a sentence each."""


_NAME = re.compile(r"a(\d+)\.h(\d+)|m(\d+)")


def named(name: str, shapes: Sequence[LayerShape]) -> Node | None:
    """The node called `a3.h1` or `m3`; None where the model has none of this name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    node = Node(int(found[3]), None) if found[2] is None else Node(int(found[1]), int(found[2]))
    exists = node.layer < len(shapes) and (node.head is None or node.head < shapes[node.layer].heads)
    return node if exists else None


def names(shapes: Sequence[LayerShape]) -> str:
    """The names there are, for messages."""
    last = len(shapes) - 1
    return f"the model has heads a0.h0 to a{last}.h{shapes[-1].heads - 1} and MLPs m0 to m{last}"


def on_paths(edges: Iterable[Edge]) -> set[Node]:
    """The nodes between START and END on paths of these edges.

    Under interchange ablation no other one matters: it outputs what it outputs on the corrupted prompt, or nothing reads it.
    """
    edges = list(edges)
    reached, useful = {START}, {END}
    for writer, reader in sorted(edges, key=lambda edge: edge[0].place):
        if writer in reached:
            reached.add(reader)
    for writer, reader in sorted(edges, key=lambda edge: edge[1].place, reverse=True):
        if reader in useful:
            useful.add(writer)
    return reached & useful - {START, END}


def masks_of_nodes(nodes: Iterable[Node], shapes: Sequence[LayerShape]) -> Masks:
    """Masks of every granularity that keep all neurons of these nodes."""
    leaves = {
        name: torch.zeros(len(shapes), max(GRANULARITIES[name].width(shape) for shape in shapes), dtype=torch.bool)
        for name in ("attention_neuron", "mlp_neuron")
    }
    for layer, head in nodes:
        shape = shapes[layer]
        if head is None:
            leaves["mlp_neuron"][layer, : shape.intermediate] = True
        else:
            leaves["attention_neuron"][layer, head * shape.head_dim : (head + 1) * shape.head_dim] = True
    return consistent(leaves, shapes)
