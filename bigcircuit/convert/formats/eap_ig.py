"""Graphs of EAP-IG and of the MIB benchmark, as `graph.to_json` writes them.

`{"cfg": {"n_layers": .., "n_heads": .., "d_model": ..}, "nodes": {"a0.h1": {"in_graph": true}, ..}, "edges":
{"input->a0.h1<q>": {"in_graph": true, "score": ..}, ..}}`; in older files a node is `"a0.h1": true`. Heads are query heads: EAP-IG
repeats grouped keys and values.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigcircuit.convert.graph import GraphCircuit, node_extra, reader_names, real_edges, writer_names
from bigcircuit.convert.nodes import END, START, Edge, KeptNodes, Node, known_names, nodes_on_paths, parse_node
from bigcircuit.errors import UserError
from bigcircuit.io.files import write_bytes
from bigcircuit.model.granularity import LayerShape

if TYPE_CHECKING:
    from torch import Tensor

NAME = "EAP-IG graph"
RULE = (
    "A head or MLP is kept if it lies on a path of kept edges from input to logits, which is what EAP-IG's own prune() leaves; in "
    "a file that keeps no edge, if it is marked in_graph. What EAP-IG calls neurons are the d_model outputs of a node; they are "
    "not read."
)
IF_EMPTY = "where it holds scores alone choose a size first: graph.apply_topn or graph.apply_greedy, then graph.to_json"
TO, SUFFIX = "eap-ig", ".json"
_KEYS = ("cfg", "nodes", "edges")
_LARGEST = 3e38
"""Largest absolute score: that of float32."""
_EDGE = re.compile(r"([^<>]+)->([^<>]+?)(<[qkv]>)?")


def recognises(data: Any) -> bool:
    """Check whether parsed JSON is meant to be such a graph: at least two of its three parts are mappings."""
    return isinstance(data, dict) and sum(isinstance(data.get(key), dict) for key in _KEYS) >= 2


def read(data: Mapping[str, Any], shapes: Sequence[LayerShape], source: str) -> KeptNodes:
    """Read the nodes that a graph keeps. Raises UserError naming `source` and the key for damage or another model's graph."""
    for key in _KEYS:
        if not isinstance(data.get(key), dict):
            raise UserError(
                f"{source}: {key} is not there or is no mapping; write the file with EAP-IG's graph.to_json"
            )
    check_model(data["cfg"], shapes, source)
    nodes = {name: _parse_node_or_end(name, shapes, source) for name in data["nodes"]}
    marked = {nodes[name] for name in _in_graph(data, "nodes", source)} - {START, END}
    edges = {name: _parse_edge(name, shapes, source) for name in data["edges"]}
    kept_edges = [edges[name] for name in _in_graph(data, "edges", source)]
    kept = nodes_on_paths(kept_edges) if kept_edges else marked
    has_neurons = any(isinstance(entry, dict) and "neurons" in entry for entry in data["nodes"].values())
    scores = {nodes[name]: score for name, score in _scores(data, "nodes", source).items()}
    extra = node_extra(scores, shapes) | _edge_extra(data, shapes, source)
    return KeptNodes(kept, notes_on(kept, marked, bool(kept_edges), has_neurons), extra)


def notes_on(kept: set[Node], marked: set[Node], has_edges: bool, has_neurons: bool) -> list[str]:
    """Say what of a graph is taken otherwise than it may look. marked: nodes that the file marks as kept."""
    notes = []
    if marked and not has_edges:
        notes.append("it keeps no edge, so the nodes that it marks in_graph are taken")
    if left := len(marked - kept):
        notes.append(f"{left} of the nodes that it marks in_graph are on no path of kept edges and are left out")
    if has_neurons:
        notes.append("its neurons, which are the d_model outputs of nodes, are not read")
    return notes


def _edge_extra(data: Mapping[str, Any], shapes: Sequence[LayerShape], source: str) -> "dict[str, Tensor]":
    """Lay out scores and marks of edges for the circuit file; empty for an older file without scores."""
    import torch

    scores = _scores(data, "edges", source)
    if not scores:
        return {}
    layers, heads = len(shapes), shapes[0].heads
    rows = {name: place for place, name in enumerate(writer_names(layers, heads))}
    columns = {name: place for place, name in enumerate(reader_names(layers, heads))}
    score = torch.zeros(len(rows), len(columns))
    kept = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    in_graph = set(_in_graph(data, "edges", source))
    for name in data["edges"]:
        writer, reader = name.split("->")
        place = rows[writer], columns[reader]
        score[place], kept[place] = scores.get(name, 0.0), name in in_graph
    return {"edge_score": score, "edge_kept": kept}


def _scores(data: Mapping[str, Any], key: str, source: str) -> dict[str, float]:
    """Read the scores under a key by name; null and a missing score are none. Raises UserError for one that is no number."""
    found = {}
    for name, entry in data[key].items():
        score = entry.get("score") if isinstance(entry, dict) else None
        if score is None:
            continue
        if not isinstance(score, int | float) or isinstance(score, bool) or abs(score) > _LARGEST:
            raise UserError(
                f"{source}: {key}.{name}.score is {score!r:.60}, not a number; write the file with EAP-IG's graph.to_json"
            )
        found[name] = float(score)
    return found


def graph_settings(graph: GraphCircuit) -> dict[str, Any]:
    """Make the part `cfg` of a graph. Raises UserError where the hidden size is not known."""
    shape = graph.shapes[0]
    if not shape.hidden:
        raise UserError("the circuit file does not say the hidden size of the model; name the model with --model.path")
    return {
        "n_layers": graph.layers,
        "n_heads": shape.heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": shape.hidden,
    }


def write(graph: GraphCircuit, path: Path) -> list[str]:
    """Write the graph. Returns notes."""
    layers, heads = graph.layers, graph.heads_per_layer
    sources, places = writer_names(layers, heads), reader_names(layers, heads)
    kept, scores = graph.kept_nodes(), graph.node_scores()
    # A node without a score is NaN there, which its reader takes for a node that has to stay.
    nodes = {"input": {"in_graph": True}, **{n: {"in_graph": kept[n], "score": scores[n]} for n in kept}}
    edges = {
        f"{sources[row]}->{places[column]}": {
            "score": float(graph.edge_scores[row, column]),
            "in_graph": bool(graph.edge_kept[row, column]),
        }
        for row, column in real_edges(layers, heads, graph.parallel).nonzero().tolist()
    }
    content = {"cfg": graph_settings(graph), "nodes": nodes | {"logits": {"in_graph": True}}, "edges": edges}
    write_bytes(path, json.dumps(content).encode())
    return graph.notes()


def check_model(cfg: Mapping[str, Any], shapes: Sequence[LayerShape], source: str) -> None:
    """Raises UserError unless the sizes of a graph are those of the model."""
    for key, known in (("n_layers", len(shapes)), ("n_heads", shapes[0].heads), ("d_model", shapes[0].hidden)):
        if cfg.get(key) != known:
            raise UserError(
                f"{source}: cfg.{key} is {cfg.get(key)!r:.60}, of the model {known}; name the model it was "
                "found in with --model.path"
            )


def _parse_node_or_end(name: str, shapes: Sequence[LayerShape], source: str) -> Node:
    node = {"input": START, "logits": END}.get(name) or parse_node(name, shapes)
    if node is None:
        raise UserError(
            f"{source}: nodes: {name!r:.60} is no node; {known_names(shapes)}, and there are input and logits"
        )
    return node


def _parse_edge(name: str, shapes: Sequence[LayerShape], source: str) -> Edge:
    found = _EDGE.fullmatch(name)
    if found:
        writer = START if found[1] == "input" else parse_node(found[1], shapes)
        reader = END if found[2] == "logits" else parse_node(found[2], shapes)
        letter = found[3] is not None
        if writer and reader and writer.place < reader.place and letter == (reader.head is not None):
            return writer, reader
    raise UserError(
        f"{source}: edges: {name!r:.60} is no edge; {known_names(shapes)}, and edges are like "
        "input->a0.h0<q>, a0.h0->m0, m0->logits"
    )


def _in_graph(data: Mapping[str, Any], key: str, source: str) -> list[str]:
    """List the names under a key that are in the graph."""
    values = {name: entry.get("in_graph") if isinstance(entry, dict) else entry for name, entry in data[key].items()}
    for name, value in values.items():
        if value not in (True, False):
            raise UserError(
                f"{source}: {key}.{name}.in_graph is {value!r:.60}, not true or false; write the file with EAP-IG's graph.to_json"
            )
    return [name for name, value in values.items() if value]
