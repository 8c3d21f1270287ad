"""Graphs of circuit-tracer and Neuronpedia: `<slug>.json` for the local viewer, and its entry in `graph-metadata.json` beside.

What the viewer (0.5.0) does with the fields, read from its scripts: it drops a node that is on more than two thirds of the tokens,
so there are two tokens; it takes the probability of a logit from `(p=..)` in its label; it computes layer and number of a feature
from their Cantor pairing; and its slider keeps nodes of an influence up to a threshold, where influence is the cumulative share of
the scores, the largest first.
"""

import json
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from bigcircuit.convert.graph import GraphCircuit, reader_names, writer_names
from bigcircuit.io.files import read_json, write_bytes, write_json

NAME = "circuit-tracer graph"
RULE = "Written only: kept heads and MLPs as nodes of the kind that the viewer draws features as, kept edges as links."
TO, SUFFIX = "circuit-tracer", ".json"
_FEATURE, _EMBEDDING, _LOGIT = "cross layer transcoder", "embedding", "logit"


def write(graph: GraphCircuit, path: Path) -> list[str]:
    """Write the graph, and add it to the list beside. Returns notes."""
    from bigcircuit.results.shape import check_shape  # loads torch

    kept = graph.kept_nodes()
    scores = graph.node_scores()
    influence = _influence({name: scores[name] for name in kept if kept[name]})
    ids = {name: _identity(name, graph) for name in kept if kept[name]}
    nodes = [
        _node(_identity("input", graph), _EMBEDDING, "E", 0, "embeddings"),
        *(
            _node(ids[name], _FEATURE, _layer(name), _number(name, graph), _label(name))
            | {"influence": influence.get(name), "activation": scores[name] if name in influence else None}
            for name in ids
        ),
        _node(_identity("logits", graph), _LOGIT, str(graph.layers), 0, 'Output "logits" (p=1.000)'),
    ]
    metadata = {
        "slug": path.stem,
        "scan": graph.circuit.metadata.get("model", "") or "model",
        "transcoder_list": [],
        "prompt_tokens": ["(all", "positions)"],
        "prompt": f"{graph.task or 'circuit'}: {len(ids)} heads and MLPs",
        "node_threshold": 1.0,
        "schema_version": 1,
    }
    content = {
        "metadata": metadata,
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": _links(graph, ids),
    }
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
    listed = path.with_name("graph-metadata.json")
    known = read_json(listed, "move it", "graphs")["graphs"] if listed.exists() else []
    check_shape(known, list[dict[str, Any]], f"{listed}: graphs", "move it")
    write_json(listed, {"graphs": [*(one for one in known if one.get("slug") != path.stem), metadata]})
    return [
        *graph.notes(),
        "nodes have no position there: all are at the first one",
        f"the viewer's list is {listed.name}",
    ]


def _links(graph: GraphCircuit, ids: dict[str, str]) -> list[dict[str, Any]]:
    """Kept edges; of the three into a head the score with the largest absolute value."""
    sources, places = (names(graph.layers, graph.heads_per_layer) for names in (writer_names, reader_names))
    known = ids | {end: _identity(end, graph) for end in ("input", "logits")}
    found: dict[tuple[str, str], float] = {}
    for row, column in graph.edge_kept.nonzero().tolist():
        ends = sources[row], places[column].split("<")[0]
        if all(end in known for end in ends):
            score = float(graph.edge_scores[row, column])
            found[ends] = max(found.get(ends, 0.0), score, key=abs)
    return [{"source": known[a], "target": known[b], "weight": weight} for (a, b), weight in found.items()]


def _layer(name: str) -> str:
    return name[1:].split(".")[0]


def _feature(name: str, graph: GraphCircuit) -> int:
    """Number within the layer: heads first, then the MLP."""
    return graph.heads_per_layer if name[0] == "m" else int(name.split(".h")[1])


def _label(name: str) -> str:
    return f"MLP {name[1:]}" if name[0] == "m" else f"head {_layer(name)}.{name.split('.h')[1]}"


def _identity(name: str, graph: GraphCircuit) -> str:
    """`<layer>_<feature>_<position>`, as the viewer parses it."""
    if name == "input":
        return "E_0_0"
    return f"{graph.layers}_0_0" if name == "logits" else f"{_layer(name)}_{_feature(name, graph)}_0"


def _number(name: str, graph: GraphCircuit) -> int:
    """Cantor pairing of layer and number within the layer."""
    layer, feature = int(_layer(name)), _feature(name, graph)
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def _influence(scores: Mapping[str, float]) -> dict[str, float]:
    """Cumulative share of the absolute scores, the largest first; without nodes that have no score."""
    known = sorted((name for name in scores if scores[name] == scores[name]), key=lambda name: -abs(scores[name]))
    total = sum(abs(scores[name]) for name in known)
    sums = accumulate(abs(scores[name]) for name in known)
    return {name: min(part / total, 1.0) if total else 1.0 for name, part in zip(known, sums, strict=True)}


def _node(identity: str, kind: str, layer: str, feature: int, label: str) -> dict[str, Any]:
    return {
        "node_id": identity,
        "feature": feature,
        "layer": layer,
        "ctx_idx": 0,
        "feature_type": kind,
        "token_prob": 1.0 if kind == _LOGIT else 0.0,
        "is_target_logit": kind == _LOGIT,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{feature}-0",
        "clerp": label,
        "influence": None,
        "activation": None,
    }
