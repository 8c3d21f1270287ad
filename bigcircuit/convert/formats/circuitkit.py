"""Artefacts of CircuitKit: a .pt list of the nodes that are REMOVED, and beside it `<stem>_scores.json` with a score a node.

Names are `A0.1` for a head and `MLP 1`. The circuit is the complement of the list.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigcircuit.convert.files import PtFile, write_pt
from bigcircuit.convert.graph import GraphCircuit, node_extra
from bigcircuit.convert.nodes import KeptNodes, Node
from bigcircuit.errors import UserError
from bigcircuit.io.files import read_json, write_json
from bigcircuit.model.granularity import LayerShape

NAME = "CircuitKit artefact"
RULE = "The file lists the nodes that are removed; a head or MLP is kept if it is not in the list."
IF_EMPTY = "every head and MLP is in its list of removed nodes"
TO, SUFFIX = "circuitkit", ".pt"
_AGAIN = "write it again with CircuitKit"
_NODE = re.compile(r"A(\d{1,9})\.(\d{1,9})|MLP (\d{1,9})")


def recognises(data: Any) -> bool:
    """Check whether the content of a .pt file is meant to be such a list, or such a mapping of neurons."""
    if not isinstance(data, PtFile):
        return False
    if isinstance(data.content, dict):
        return "_meta" in data.content
    return isinstance(data.content, list)


def read(data: Any, shapes: Sequence[LayerShape], source: str) -> KeptNodes:
    """Read the nodes that are not in the list. Raises UserError naming `source` for names that the model has not."""
    if isinstance(data.content, dict):
        raise UserError(f"{source}: lists neurons of CircuitKit; only lists of nodes are read: discover at level node")
    removed = {_node(name, shapes, source) for name in data.content}
    every = {Node(layer, h) for layer, shape in enumerate(shapes) for h in (*range(shape.heads), None)}
    beside = scores_path(Path(source))
    found: Mapping[str, Any] = {}
    if beside.exists():
        from bigcircuit.results.shape import check_shape  # loads torch

        found = read_json(beside, _AGAIN, "node_scores")["node_scores"]
        check_shape(found, dict[str, float | None], f"{beside}: node_scores", _AGAIN)
    scores = {_node(name, shapes, str(beside)): score for name, score in found.items() if score is not None}
    notes = [] if scores else [f"{beside.name} is not there, so no scores are read"]
    return KeptNodes(every - removed, notes, node_extra(scores, shapes))


def scores_path(path: Path) -> Path:
    """Where CircuitKit keeps the scores of an artefact."""
    return path.with_name(f"{path.stem}_scores.json")


def _node(name: Any, shapes: Sequence[LayerShape], source: str) -> Node:
    found = _NODE.fullmatch(name) if isinstance(name, str) else None
    node = None
    if found:
        node = Node(int(found[3]), None) if found[1] is None else Node(int(found[1]), int(found[2]))
    if node is None or node.layer >= len(shapes) or (node.head or 0) >= shapes[node.layer].heads:
        raise UserError(
            f"{source}: {name!r:.60} is no node; the model has A0.0 to A{len(shapes) - 1}.{shapes[-1].heads - 1} and MLP 0 to "
            f"MLP {len(shapes) - 1}; name the model it was found in with --model.path"
        )
    return node


def write(graph: GraphCircuit, path: Path) -> list[str]:
    """Write the list of removed nodes, and the scores beside. Returns notes. Raises UserError if a file of scores is there."""
    if scores_path(path).exists():
        raise UserError(f"{scores_path(path)}: exists already; move it, or name another file with --output")
    names = {name: _their_name(name) for name in graph.kept_nodes()}
    write_pt(path, [names[name] for name, kept in graph.kept_nodes().items() if not kept])
    scores = {names[name]: score for name, score in graph.node_scores().items()}
    write_json(scores_path(path), {"node_scores": json.loads(json.dumps(scores))})
    return [*graph.notes(), f"scores are in {scores_path(path).name}; the list holds the nodes that are removed"]


def _their_name(name: str) -> str:
    return f"MLP {name[1:]}" if name[0] == "m" else "A" + name[1:].replace(".h", ".")
