"""Nodes as people read them: names, lists and tables of what a circuit keeps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bigcircuit.config.extras import need
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import ATTENTION, GRANULARITIES, LEAVES, MLP, MLP_OUTPUT, LayerShape

_SUFFIX = {"block": "", "attention": "ATTN", "mlp": "MLP", "mlp_output": "OUT", "kv_group": "KV", "head": "H"}
"""What comes after the layer in a node's name."""
_ALONE = ("block", "attention", "mlp")
"""Granularities with one node a layer, whose names have no number after it."""
_HOOKS = {ATTENTION: "blocks.{}.attn.hook_z", MLP: "blocks.{}.mlp.hook_post", MLP_OUTPUT: "blocks.{}.hook_mlp_out"}
"""Site -> name of the hook at the same place in TransformerLens."""


def node_name(granularity: str, layer: int, index: int, head_dim: int) -> str:
    """Name a node: `L4` a block, `L4ATTN`, `L4MLP`, `L4H3` a head, `L4KV1`, `L4H3.12` and `L4MLP.12` neurons; counted from 0.

    head_dim: attention neurons of a head.
    """
    if granularity == "attention_neuron":
        return f"L{layer}H{index // head_dim}.{index % head_dim}"
    if granularity == "mlp_neuron":
        return f"L{layer}MLP.{index}"
    suffix = _SUFFIX[granularity]
    return f"L{layer}{suffix}" if granularity in _ALONE else f"L{layer}{suffix}{'.' * (suffix == 'OUT')}{index}"


def node_names(granularity: str, layer: int, nodes: Sequence[int], head_dim: int) -> str:
    """Name nodes of one layer, of many the first three and how many there are."""
    named = [node_name(granularity, layer, index, head_dim) for index in nodes[:3]]
    return ", ".join(named) + (f", … ({len(nodes)})" if len(nodes) > 3 else "")


class NodeRow(NamedTuple):
    """A node of a circuit."""

    name: str
    granularity: str
    layer: int
    place: int
    """Number of the node among those of its granularity in the layer, from 0."""
    neurons: int
    """Kept neurons in it."""
    of: int
    """Its neurons."""


def kept_nodes(masks: Mapping[str, Tensor], shapes: Sequence[LayerShape], granularity: str) -> list[NodeRow]:
    """List the kept nodes of a granularity, layer by layer."""
    rows = []
    for layer, shape in enumerate(shapes):
        width = GRANULARITIES[granularity].width(shape)
        leaves = [
            masks[LEAVES[site]][layer, : GRANULARITIES[LEAVES[site]].width(shape)].reshape(width, -1)
            for site in (ATTENTION, MLP)
            if site in GRANULARITIES[granularity].sites
        ] or [masks[granularity][layer, :width].unsqueeze(1)]
        for index in masks[granularity][layer, :width].nonzero().flatten().tolist():
            neurons, of = (sum(part(leaf[index]) for leaf in leaves) for part in (lambda m: int(m.sum()), len))
            name = node_name(granularity, layer, index, shape.head_dim)
            rows.append(NodeRow(name=name, granularity=granularity, layer=layer, place=index, neurons=neurons, of=of))
    return rows


def to_frame(rows: Sequence[NodeRow]) -> Any:
    """Make a pandas DataFrame of nodes. Raises UserError if pandas is not installed."""
    need("to_pandas", "data", "pandas")
    import pandas

    return pandas.DataFrame(rows, columns=NodeRow._fields)


def hook_masks(masks: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> dict[str, Tensor]:
    """Masks by the names of TransformerLens' hooks: bool [heads, head width] at `attn.hook_z`, [neurons] elsewhere.

    Raises UserError for a circuit of mixers or experts, which have no hook there.
    """
    if others := [leaf for site, leaf in LEAVES.items() if leaf in masks and site not in _HOOKS]:
        raise UserError(
            f"the circuit has masks of {GRANULARITIES[others[0]].nodes}, which TransformerLens has no hook for"
        )
    found = {}
    for layer, shape in enumerate(shapes):
        for site, hook in _HOOKS.items():
            leaf = LEAVES[site]
            if leaf not in masks:
                continue
            mask = masks[leaf][layer, : GRANULARITIES[leaf].width(shape)]
            found[hook.format(layer)] = mask.view(shape.heads, shape.head_dim) if site == ATTENTION else mask
    return found
