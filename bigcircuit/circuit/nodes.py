"""Nodes as people read them: names, lists and tables of what a circuit keeps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bigcircuit.config.extras import need
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import (
    ATTENTION,
    COUNTED,
    EXPERT_NEURON,
    GRANULARITIES,
    LEAVES,
    MLP,
    MLP_OUTPUT,
    LayerShape,
)

_SUFFIX = {
    "block": "",
    "attention": "ATTN",
    "mlp": "MLP",
    "mlp_output": "OUT.",
    "kv_group": "KV",
    "head": "H",
    "mlp_neuron": "MLP.",
    "mixer": "MIX",
    "mixer_head": "M",
    "expert": "E",
}
"""What comes after the layer in a node's name."""
_ALONE = ("block", "attention", "mlp", "mixer")
"""Granularities with one node a layer, whose names have no number after it."""
_HOLDERS = {"attention_neuron": "head", "mixer_neuron": "mixer_head", "expert_neuron": "expert"}
"""Neurons -> nodes that hold as many each, and whose names come before theirs."""
_HOOKS = {ATTENTION: "blocks.{}.attn.hook_z", MLP: "blocks.{}.mlp.hook_post", MLP_OUTPUT: "blocks.{}.hook_mlp_out"}
"""Site -> name of the hook at the same place in TransformerLens."""


def node_name(granularity: str, layer: int, index: int, held: int = 1) -> str:
    """Name a node: `L4` a block, `L4ATTN`, `L4MLP`, `L4MIX`, `L4H3` a head, `L4KV1`, `L4M3` a mixer head, `L4E3` an expert.

    Neurons are `L4H3.12`, `L4M3.12`, `L4E3.12` and `L4MLP.12`. Counted from 0. held: see `held_neurons`.
    """
    if granularity in _HOLDERS:
        return f"{node_name(_HOLDERS[granularity], layer, index // held)}.{index % held}"
    return f"L{layer}{_SUFFIX[granularity]}{'' if granularity in _ALONE else index}"


def held_neurons(granularity: str, nodes: Mapping[str, int]) -> int:
    """Count the neurons of a head, mixer head or expert, of which nodes of a granularity are; 1 for other granularities.

    nodes: of a layer, or of a model of like layers, by granularity.
    """
    return nodes.get(granularity, 0) // max(nodes.get(_HOLDERS.get(granularity, ""), 0), 1) or 1


def node_names(granularity: str, layer: int, nodes: Sequence[int], held: int = 1) -> str:
    """Name nodes of one layer, of many the first three and how many there are."""
    named = [node_name(granularity, layer, index, held) for index in nodes[:3]]
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
        if not width:
            continue
        counts = {name: one.width(shape) for name, one in GRANULARITIES.items()}
        leaves = [
            masks[LEAVES[site]][layer, : counts[LEAVES[site]]].reshape(width, -1)
            for site in (*COUNTED, EXPERT_NEURON)
            if site in GRANULARITIES[granularity].sites and LEAVES[site] in masks
        ] or [masks[granularity][layer, :width].unsqueeze(1)]
        for index in masks[granularity][layer, :width].nonzero().flatten().tolist():
            neurons, of = (sum(part(leaf[index]) for leaf in leaves) for part in (lambda m: int(m.sum()), len))
            name = node_name(granularity, layer, index, held_neurons(granularity, counts))
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
