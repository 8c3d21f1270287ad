"""Heads and MLPs as other tools name them: parsing of names, nodes on kept paths, masks of nodes."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from bigcircuit.model.granularity import GRANULARITIES, LayerShape

if TYPE_CHECKING:
    from torch import Tensor

    from bigcircuit.gates.discretise import Masks


class Node(NamedTuple):
    """A query head, or the MLP of a layer."""

    layer: int
    head: int | None
    """None for the MLP."""

    @property
    def place(self) -> tuple[int, bool]:
        """Order of writing: nodes write to nodes of later places. First heads of a layer, then its MLP, then the next layer."""
        return self.layer, self.head is None


START, END = Node(-1, None), Node(sys.maxsize, None)
"""The embeddings, and the input of the vocabulary projection."""
Edge = tuple[Node, Node]
"""Writer and reader."""


class KeptNodes(NamedTuple):
    """Nodes that a file of another tool keeps."""

    nodes: set[Node]
    notes: Sequence[str] = ()
    """Notes about the file for the user, a sentence each."""
    extra: "Mapping[str, Tensor]" = MappingProxyType({})
    """Scores of nodes and edges that the circuit file keeps, see `graph.py`."""
    leaves: "Mapping[str, Tensor] | None" = None
    """Masks of single neurons, bool [L, n] by granularity, where the file has them; else all neurons of the nodes are kept."""


_NAME = re.compile(r"a(\d{1,9})\.h(\d{1,9})|m(\d{1,9})")
"""Longer numbers name no node of any model, and Python parses none of more than 4300 digits."""


def parse_node(name: str, shapes: Sequence[LayerShape]) -> Node | None:
    """Parse the name of a node, such as `a3.h1` or `m3`; None if the model has no node of this name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    node = Node(int(found[3]), None) if found[2] is None else Node(int(found[1]), int(found[2]))
    exists = node.layer < len(shapes) and (node.head is None or node.head < shapes[node.layer].heads)
    return node if exists else None


def known_names(shapes: Sequence[LayerShape]) -> str:
    """List the names of the model's nodes, for messages."""
    last = len(shapes) - 1
    return f"the model has heads a0.h0 to a{last}.h{shapes[-1].heads - 1} and MLPs m0 to m{last}"


def nodes_on_paths(edges: Iterable[Edge]) -> set[Node]:
    """Find the nodes between START and END on paths of these edges.

    Under interchange ablation no other node matters: its output is that on the corrupted prompt, or nothing reads its output.
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


def masks_of_nodes(nodes: Iterable[Node], shapes: Sequence[LayerShape]) -> "Masks":
    """Make masks of every granularity that keep all neurons of these nodes."""
    import torch  # here, so that `convert --help` does without torch

    from bigcircuit.circuit.masks import complete_masks

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
    return complete_masks(leaves, shapes)
