"""Masks by hook names of TransformerLens, as JSON: `masks`: hook name -> 0 or 1 a neuron, and `aliases`: the other spelling.

`blocks.<l>.attn.hook_z` has a row a query head, `blocks.<l>.mlp.hook_post` a number a neuron. The bridge of TransformerLens 4 calls
the same places `blocks.<l>.attn.o.hook_in` and `blocks.<l>.mlp.out.hook_in`. `bigcircuit.convert.hooks` makes hooks of a circuit.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigcircuit.convert.graph import GraphCircuit
from bigcircuit.convert.hook_names import ALIASES, HEADS, NEURONS
from bigcircuit.convert.nodes import KeptNodes, Node
from bigcircuit.errors import UserError
from bigcircuit.io.files import write_bytes
from bigcircuit.model.granularity import GRANULARITIES, LayerShape

NAME = "TransformerLens masks"
RULE = "A neuron is kept if its number is 1."
IF_EMPTY = "all its numbers are 0"
TO, SUFFIX = "transformer-lens", ".json"
_PLACE = re.compile(r"blocks\.(\d{1,9})\.(.+)")


def recognises(data: Any) -> bool:
    """Check whether parsed JSON maps hook names to masks."""
    return isinstance(data, dict) and isinstance(data.get("masks"), dict) and any(map(_PLACE.match, data["masks"]))


def read(data: Any, shapes: Sequence[LayerShape], source: str) -> KeptNodes:
    """Read the masks of single neurons. Raises UserError naming `source` and the hook."""
    import torch

    sites = {HEADS: "attention_neuron", NEURONS: "mlp_neuron"}
    sizes: dict[str, list[tuple[int, ...]]] = {
        HEADS: [(s.heads, s.head_dim) for s in shapes],
        NEURONS: [(s.intermediate,) for s in shapes],
    }
    leaves = {
        leaf: torch.zeros(len(shapes), max(torch.Size(size).numel() for size in sizes[place]), dtype=torch.bool)
        for place, leaf in sites.items()
    }
    nodes, seen = set(), set()
    for name, values in data["masks"].items():
        found = _PLACE.fullmatch(name)
        place = ALIASES.get(found[2], found[2]) if found else ""
        if found is None or place not in sites or int(found[1]) >= len(shapes):
            raise UserError(
                f"{source}: masks: {name!r:.60} is no hook of the heads or MLP neurons of {len(shapes)} layers"
            )
        layer, size = int(found[1]), sizes[place][int(found[1])]
        if (layer, place) in seen:
            raise UserError(f"{source}: masks: {name} names a place that another mask is of; leave one out")
        seen.add((layer, place))
        try:
            mask = torch.tensor(values)
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{source}: masks.{name} is no list of numbers; write 0 or 1 a neuron") from error
        if tuple(mask.shape) != size or not ((mask == 0) | (mask == 1)).all():
            raise UserError(
                f"{source}: masks.{name} is not 0 or 1 for {' x '.join(map(str, size))} neurons; name the model it was found in "
                "with --model.path"
            )
        leaves[sites[place]][layer, : mask.numel()] = mask.flatten().bool()
        if place == NEURONS and mask.any():
            nodes.add(Node(layer, None))
        elif place == HEADS:
            nodes |= {Node(layer, head) for head in mask.any(1).nonzero().flatten().tolist()}
    if left := [f"blocks.{i}.{place}" for i in range(len(shapes)) for place in sites if (i, place) not in seen]:
        raise UserError(
            f"{source}: masks: there is none for {left[0]}, and whether its neurons are kept is not said; write 1 for those that "
            "stay as they are"
        )
    return KeptNodes(nodes, leaves=leaves)


def write(graph: GraphCircuit, path: Path) -> list[str]:
    """Write the masks. Returns notes. Raises UserError for circuits that close outputs of MLPs or experts, which have no hook."""
    if others := [n for n in ("mlp_output", "expert", "expert_neuron") if n in graph.circuit.masks]:
        raise UserError(
            f"--to transformer-lens: the circuit has masks of {GRANULARITIES[others[0]].nodes}, for which there is no hook"
        )
    masks = {}
    for layer, shape in enumerate(graph.shapes):
        heads = graph.circuit.masks["attention_neuron"][layer, : shape.heads * shape.head_dim]
        masks[f"blocks.{layer}.{HEADS}"] = heads.view(shape.heads, shape.head_dim).int().tolist()
        masks[f"blocks.{layer}.{NEURONS}"] = (
            graph.circuit.masks["mlp_neuron"][layer, : shape.intermediate].int().tolist()
        )
    content = {
        "model": graph.circuit.metadata.get("model", ""),
        "ablation": graph.circuit.ablation_name,
        "aliases": {place: other for other, place in ALIASES.items()},
        "masks": masks,
    }
    write_bytes(path, (json.dumps(content) + "\n").encode())
    if graph.circuit.ablation_name == "zero":
        return []
    return [f"the file holds masks; what closed nodes output under {graph.circuit.ablation_name} ablation is not in it"]
