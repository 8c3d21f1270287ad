"""A table of heads and MLPs as CSV: `layer, kind, head, kept, neurons_kept, neurons, score`, a row a node."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigcircuit.convert.files import CsvFile, write_csv
from bigcircuit.convert.graph import GraphCircuit, node_extra
from bigcircuit.convert.nodes import KeptNodes, Node
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import LayerShape

NAME = "table of nodes"
RULE = "A head or MLP is kept if its row has 1 or true under kept; nodes without a row are closed."
IF_EMPTY = "no row has 1 under kept"
TO, SUFFIX = "csv", ".csv"
_COLUMNS = ("layer", "kind", "head", "kept", "neurons_kept", "neurons", "score")
_NEEDED = ("layer", "kind", "head", "kept")


def recognises(data: Any) -> bool:
    """Check whether a CSV file has the columns of such a table."""
    return isinstance(data, CsvFile) and set(_NEEDED) <= set(data.columns)


def read(data: CsvFile, shapes: Sequence[LayerShape], source: str) -> KeptNodes:
    """Read the kept nodes and the scores. Raises UserError naming `source` and the row."""
    kept: set[Node] = set()
    scores: dict[Node, float] = {}
    seen: dict[Node, int] = {}
    for number, row in enumerate(data.rows, 2):
        try:
            node = Node(int(row["layer"]), int(row["head"]) if row["kind"] == "head" else None)
            if row["kind"] not in ("head", "mlp") or not 0 <= node.layer < len(shapes):
                raise ValueError
            if not 0 <= (node.head or 0) < shapes[node.layer].heads:
                raise ValueError
            if node in seen:
                raise UserError(f"{source}: line {number} is of a node that line {seen[node]} is of; leave one out")
            seen[node] = number
            if row["kept"].strip().lower() in ("1", "true"):
                kept.add(node)
            elif row["kept"].strip().lower() not in ("0", "false"):
                raise ValueError
            if row.get("score"):
                scores[node] = float(row["score"])
        except UserError:
            raise
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"{source}: line {number} names no node of the model; write layer (0 to {len(shapes) - 1}), kind (head or mlp), "
                f"head (0 to {shapes[0].heads - 1}, empty for an mlp), kept (0 or 1) and score (a number or nothing)"
            ) from error
    missing = sum(shape.heads + 1 for shape in shapes) - len(seen)
    notes = [f"{missing} heads and MLPs have no row and are taken as closed; is the file whole?"] if missing else []
    return KeptNodes(kept, notes, node_extra(scores, shapes))


def write(graph: GraphCircuit, path: Path) -> list[str]:
    """Write the table. Returns notes."""
    rows = []
    for layer, shape in enumerate(graph.shapes):
        neurons = graph.circuit.masks["attention_neuron"][layer, : shape.heads * shape.head_dim].view(shape.heads, -1)
        for head in range(shape.heads):
            rows.append(
                _row(layer, "head", head, graph.heads[layer, head], neurons[head], graph.head_scores[layer, head])
            )
        mlp = graph.circuit.masks["mlp_neuron"][layer, : shape.intermediate]
        rows.append(_row(layer, "mlp", "", graph.mlps[layer, 0], mlp, graph.mlp_scores[layer, 0]))
    write_csv(path, _COLUMNS, rows)
    return [f"{graph.in_part} heads and MLPs are kept in part: the table counts their neurons"] if graph.in_part else []


def _row(layer: int, kind: str, head: object, kept: Any, neurons: Any, score: Any) -> dict[str, object]:
    value = float(score)
    return {
        "layer": layer,
        "kind": kind,
        "head": head,
        "kept": int(kept),
        "neurons_kept": int(neurons.sum()),
        "neurons": len(neurons),
        "score": value if value == value else "",
    }
