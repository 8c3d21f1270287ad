"""Circuits of Edge-Pruning, the `edges.json` of its scripts vis_fpt2.py and vis_fllama.py.

`[[writer, reader], ..]`. Writers: `tok_embeds` and `pos_embeds` (GPT-2) or `embeds` (Llama) where embeddings were pruned as well,
heads `a0.h3`, MLPs `m0`. Readers: `a1.h2.q`, `a1.h2.k`, `a1.h2.v`, `m1`, `resid_post`; those of keys and values are counted over
key/value heads.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigcircuit.convert.graph import GraphCircuit, reader_names, writer_names
from bigcircuit.convert.nodes import END, START, Edge, KeptNodes, Node, known_names, nodes_on_paths, parse_node
from bigcircuit.errors import UserError
from bigcircuit.io.files import write_bytes
from bigcircuit.model.granularity import LayerShape

TO, SUFFIX = "edge-pruning", ".json"
NAME = "Edge-Pruning edges"
RULE = (
    "A head or MLP is kept if it lies on a path of kept edges from the embeddings to resid_post; in a file without embeddings, "
    "where Edge-Pruning gives them to every node, if a path leads from it to resid_post. An edge into a key/value head is one into "
    "every query head of its group, for each of them reads it."
)
IF_EMPTY = "no path of its edges ends at resid_post"
_EMBEDDINGS = ("embeds", "tok_embeds", "pos_embeds")
_HEAD = re.compile(r"(a\d+\.h\d+)\.([qkv])")
_END_OF_EDGE = re.compile(rf"{'|'.join(_EMBEDDINGS)}|resid_post|m\d+|a\d+\.h\d+(\.[qkv])?")


def recognises(data: Any) -> bool:
    """Check whether parsed JSON is meant to be such a list: empty, or some entry is a list with the name of a writer or reader."""
    if not isinstance(data, list):
        return False
    names = [name for entry in data if isinstance(entry, list) for name in entry if isinstance(name, str)]
    return not data or any(_END_OF_EDGE.fullmatch(name) for name in names)


def read(data: Sequence[Any], shapes: Sequence[LayerShape], source: str) -> KeptNodes:
    """Read the nodes that a list of edges keeps. Raises UserError naming `source` and the edge, counted from 1."""
    edges = [edge for number, entry in enumerate(data, 1) for edge in _edges(entry, shapes, f"{source}: edge {number}")]
    if all(writer != START for writer, _ in edges):
        edges += [(START, writer) for writer in {writer for writer, _ in edges}]
    return KeptNodes(nodes_on_paths(edges))


def write(graph: GraphCircuit, path: Path) -> list[str]:
    """Write the kept edges; one into a key/value head where any query head of its group has it. Returns notes."""
    embeddings = ("tok_embeds", "pos_embeds") if graph.model_type == "gpt2" else ("embeds",)
    sources, places = (names(graph.layers, graph.heads_per_layer) for names in (writer_names, reader_names))
    group = graph.heads_per_layer // graph.shapes[0].kv_heads
    edges: dict[tuple[str, str], None] = {}
    for row, column in graph.edge_kept.nonzero().tolist():
        reader = _their_reader(places[column], group)
        for writer in embeddings if row == 0 else (sources[row],):
            edges[writer, reader] = None
    write_bytes(path, (json.dumps([list(edge) for edge in edges]) + "\n").encode())
    scores = (
        ["its scores of nodes and edges have no place in this format"]
        if graph.circuit.extra or graph.circuit.log_alpha
        else []
    )
    guessed = (
        ["its embeddings are called embeds, as Llama's are; for GPT-2 name the model with --model.path"]
        if not graph.model_type
        else []
    )
    return [*graph.notes(), *scores, *guessed]


def _their_reader(place: str, group: int) -> str:
    """Name of a place as Edge-Pruning has it: `a1.h2<k>` is `a1.h1.k` with two query heads a key/value head."""
    if not place.endswith(">"):
        return place.replace("logits", "resid_post")
    layer, head = place[:-3].split(".h")
    letter = place[-2]
    return f"{layer}.h{int(head) if letter == 'q' else int(head) // group}.{letter}"


def _edges(entry: Any, shapes: Sequence[LayerShape], where: str) -> list[Edge]:
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(name, str) for name in entry):
        raise UserError(
            f"{where}: {entry!r:.60} is no pair of names; write edges.json with vis_fpt2.py or vis_fllama.py"
        )
    writer = START if entry[0] in _EMBEDDINGS else parse_node(entry[0], shapes)
    edges = [(writer, reader) for reader in _readers(entry[1], shapes) if writer and writer.place < reader.place]
    if not edges:
        raise UserError(
            f"{where}: {' -> '.join(entry)[:60]} is no edge; {known_names(shapes)}, {shapes[0].kv_heads} key/value heads "
            "a layer, and edges are like [embeds, a0.h0.q], [a0.h0, m0], [m0, resid_post]"
        )
    return edges


def _readers(name: str, shapes: Sequence[LayerShape]) -> list[Node]:
    """List the nodes that read at a place called `name`; none if the model has no such place."""
    if name == "resid_post":
        return [END]
    head_input = _HEAD.fullmatch(name)
    if head_input is None:
        mlp = parse_node(name, shapes)
        return [mlp] if mlp is not None and mlp.head is None else []
    node = parse_node(head_input[1], shapes)
    if node is None or node.head is None:
        return []
    if head_input[2] == "q":
        return [node]
    shape = shapes[node.layer]
    group = shape.heads // shape.kv_heads
    return [Node(node.layer, node.head * group + i) for i in range(group)] if node.head < shape.kv_heads else []
