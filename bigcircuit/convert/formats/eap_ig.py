"""Graphs of EAP-IG and of the MIB benchmark, as `graph.to_json` writes them.

`{"cfg": {"n_layers": .., "n_heads": .., "d_model": ..}, "nodes": {"a0.h1": {"in_graph": true}, ..}, "edges":
{"input->a0.h1<q>": {"in_graph": true, "score": ..}, ..}}`; in older files a node is `"a0.h1": true`. Heads are query heads: EAP-IG
repeats grouped keys and values.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bigcircuit.convert.nodes import END, START, Edge, KeptNodes, Node, known_names, nodes_on_paths, parse_node
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import LayerShape

NAME = "EAP-IG graph"
RULE = (
    "A head or MLP is kept if it lies on a path of kept edges from input to logits, which is what EAP-IG's own prune() leaves; in "
    "a file that keeps no edge, if it is marked in_graph. What EAP-IG calls neurons are the d_model outputs of a node; they are "
    "not read."
)
IF_EMPTY = "where it holds scores alone choose a size first: graph.apply_topn or graph.apply_greedy, then graph.to_json"
_KEYS = ("cfg", "nodes", "edges")
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
    _check_model(data["cfg"], shapes, source)
    nodes = {name: _parse_node_or_end(name, shapes, source) for name in data["nodes"]}
    marked = {nodes[name] for name in _in_graph(data, "nodes", source)} - {START, END}
    edges = {name: _parse_edge(name, shapes, source) for name in data["edges"]}
    kept_edges = [edges[name] for name in _in_graph(data, "edges", source)]
    kept = nodes_on_paths(kept_edges) if kept_edges else marked
    notes = []
    if marked and not kept_edges:
        notes.append("it keeps no edge, so the nodes that it marks in_graph are taken")
    if left := len(marked - kept):
        notes.append(f"{left} of the nodes that it marks in_graph are on no path of kept edges and are left out")
    if any(isinstance(entry, dict) and "neurons" in entry for entry in data["nodes"].values()):
        notes.append("its neurons, which are the d_model outputs of nodes, are not read")
    return KeptNodes(kept, notes)


def _check_model(cfg: Mapping[str, Any], shapes: Sequence[LayerShape], source: str) -> None:
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
