"""Graphs of EAP-IG and of the MIB benchmark as `graph.to_pt` writes them: tensors, lists and numbers.

`cfg`, `src_nodes`, `dst_nodes`, `edges_scores` [n, m], `edges_in_graph` [n, m], `nodes_in_graph` [n], and where there are any
`nodes_scores` [n], `neurons_in_graph` and `neurons_scores` [n, d_model].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigcircuit.convert.files import PtFile, write_pt
from bigcircuit.convert.formats import eap_ig
from bigcircuit.convert.graph import (
    GraphCircuit,
    edges_of,
    node_extra,
    reader_names,
    real_edges,
    writer_names,
    writers,
)
from bigcircuit.convert.nodes import END, START, KeptNodes, nodes_on_paths
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import LayerShape

NAME = "EAP-IG tensors"
RULE = eap_ig.RULE
IF_EMPTY = "where it holds scores alone choose a size first: graph.apply_topn or graph.apply_greedy, then graph.to_pt"
TO, SUFFIX = "eap-ig-pt", ".pt"
_KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")


def recognises(data: Any) -> bool:
    """Check whether the content of a .pt file is meant to be such a graph."""
    return (
        isinstance(data, PtFile) and isinstance(data.content, dict) and sum(key in data.content for key in _KEYS) >= 3
    )


def read(data: Any, shapes: Sequence[LayerShape], source: str) -> KeptNodes:
    """Read the nodes that a graph keeps, and all scores. Raises UserError naming `source` for damage or another model's graph."""

    content = data.content
    if missing := [key for key in _KEYS if key not in content]:
        raise UserError(f"{source}: {missing[0]} is not there; write the file with EAP-IG's graph.to_pt")
    if not isinstance(content["cfg"], dict):
        raise UserError(f"{source}: cfg is no mapping; write the file with EAP-IG's graph.to_pt")
    eap_ig.check_model(content["cfg"], shapes, source)
    layers, heads = len(shapes), shapes[0].heads
    names = writer_names(layers, heads)
    listed = [content[key] for key in ("src_nodes", "dst_nodes")]
    if any(not isinstance(one, (list, tuple)) for one in listed) or [list(one) for one in listed] != [
        names,
        reader_names(layers, heads),
    ]:
        raise UserError(f"{source}: src_nodes or dst_nodes are not in EAP-IG's order; write the file with graph.to_pt")
    sizes = {
        "edges_scores": (len(names), len(content["dst_nodes"])),
        "edges_in_graph": (len(names), len(content["dst_nodes"])),
        "nodes_in_graph": (len(names),),
        "nodes_scores": (len(names),),
    }
    for key, size in sizes.items():
        if key in content and not _is_plain(content[key], size):
            raise UserError(
                f"{source}: {key} is no tensor of {' x '.join(map(str, size))}; write the file with graph.to_pt"
            )
    kept_edges = content["edges_in_graph"].bool()
    impossible = (kept_edges & ~real_edges(layers, heads, parallel=False)).nonzero().tolist()
    if impossible:
        row, column = impossible[0]
        raise UserError(
            f"{source}: edges_in_graph keeps {names[row]}->{content['dst_nodes'][column]}, which is no edge, for its reader comes "
            "before its writer; write the file with graph.to_pt"
        )
    places = writers(layers, heads)
    marked = {places[row] for row in content["nodes_in_graph"].bool().nonzero().flatten().tolist()} - {START, END}
    kept = nodes_on_paths(edges_of(kept_edges, layers, heads)) if kept_edges.any() else marked
    extra = {"edge_score": content["edges_scores"].float(), "edge_kept": kept_edges}
    if "nodes_scores" in content:
        extra |= node_extra(dict(zip(places, content["nodes_scores"].tolist(), strict=True)), shapes)
    has_neurons = "neurons_in_graph" in content or "neurons_scores" in content
    return KeptNodes(kept, eap_ig.notes_on(kept, marked, kept_edges.any(), has_neurons), extra)


def _is_plain(value: Any, size: tuple[int, ...]) -> bool:
    """Whether a value is an ordinary tensor of real numbers of a size."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and tuple(value.shape) == size
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_quantized)
    )


def write(graph: GraphCircuit, path: Path) -> list[str]:
    """Write the graph. Returns notes."""
    import torch

    layers, heads = graph.layers, graph.heads_per_layer
    content = {
        "cfg": eap_ig.graph_settings(graph),
        "src_nodes": writer_names(layers, heads),
        "dst_nodes": reader_names(layers, heads),
        "edges_scores": graph.edge_scores.float(),
        "edges_in_graph": graph.edge_kept,
        "nodes_in_graph": torch.tensor([True, *graph.kept_nodes().values()]),
        "nodes_scores": torch.tensor([torch.nan, *graph.node_scores().values()]),
    }
    write_pt(path, content)
    return graph.notes()
