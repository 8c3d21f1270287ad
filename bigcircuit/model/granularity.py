"""Granularities: the kinds of nodes of a layer, and how their gates fold into the sites.

Shapes: P members, B examples, L layers, n nodes of a granularity in one layer, H query heads, D hidden size, F ffn width.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class LayerShape(NamedTuple):
    """Widths of one decoder layer."""

    heads: int
    """Query heads H."""
    kv_heads: int
    """Key/value heads; query heads are grouped over them in order."""
    head_dim: int
    intermediate: int
    """MLP neurons F."""
    hidden: int
    """Residual width D."""


class Granularity(NamedTuple):
    """Kind of node."""

    nodes: str
    """Plural noun for its nodes."""
    width: Callable[[LayerShape], int]
    """Number of nodes in a layer."""
    sites: tuple[str, ...]
    """Sites that the gates of these nodes multiply."""
    parents: tuple[str, ...]
    """Granularities whose nodes contain these nodes, coarse to fine."""


ATTENTION, MLP, MLP_OUTPUT = "attention", "mlp", "mlp_output"
"""The sites: input of the attention output projection, input of the MLP down projection, output of the MLP down projection."""

GRANULARITIES: dict[str, Granularity] = {
    "block": Granularity("blocks", lambda _: 1, (ATTENTION, MLP, MLP_OUTPUT), ()),
    "attention": Granularity("attention sub-layers", lambda _: 1, (ATTENTION,), ("block",)),
    "mlp": Granularity("MLP sub-layers", lambda _: 1, (MLP, MLP_OUTPUT), ("block",)),
    "kv_group": Granularity("key/value groups", lambda s: s.kv_heads, (ATTENTION,), ("block", "attention")),
    "head": Granularity("heads", lambda s: s.heads, (ATTENTION,), ("block", "attention", "kv_group")),
    "attention_neuron": Granularity(
        "attention neurons", lambda s: s.heads * s.head_dim, (ATTENTION,), ("block", "attention", "kv_group", "head")
    ),
    "mlp_neuron": Granularity("MLP neurons", lambda s: s.intermediate, (MLP,), ("block", "mlp")),
    "mlp_output": Granularity("MLP outputs", lambda s: s.hidden, (MLP_OUTPUT,), ("block", "mlp")),
}
"""Name of a granularity -> its entry, coarse before fine: the parents of a granularity come before it."""

NODE_NAMES = {"total": "all neurons"} | {name: granularity.nodes for name, granularity in GRANULARITIES.items()}
"""Name of a granularity, or `total` -> plural noun for its nodes."""

SITE_WIDTH: dict[str, Callable[[LayerShape], int]] = {
    ATTENTION: GRANULARITIES["attention_neuron"].width,
    MLP: GRANULARITIES["mlp_neuron"].width,
    MLP_OUTPUT: GRANULARITIES["mlp_output"].width,
}
"""Site -> number of its neurons in a layer."""

LEAVES = {ATTENTION: "attention_neuron", MLP: "mlp_neuron", MLP_OUTPUT: "mlp_output"}
"""Site -> granularity whose nodes are the single neurons of the site."""


def finest(names: Container[str], site: str) -> str | None:
    """Return the finest of the granularities `names` that acts at a site; None if none acts there."""
    acting = [name for name in GRANULARITIES if name in names and site in GRANULARITIES[name].sites]
    return acting[-1] if acting else None


def gated_sites(names: Container[str]) -> list[str]:
    """Return the sites at which gates of the granularities `names` act."""
    return [
        site
        for site, leaf in LEAVES.items()
        if finest(names, site) is not None and (site != MLP_OUTPUT or leaf in names)
    ]


def top_k_granularities(names: Sequence[str], sizes: Container[str]) -> tuple[str, ...]:
    """Return the granularities of `names` that top-k gates need: those with a target size, and those that `total` counts.

    sizes: granularities with a target size, and "total" where all neurons have a target size.
    """
    counted = {finest(names, site) for site in (ATTENTION, MLP)} if "total" in sizes else set()
    return tuple(name for name in GRANULARITIES if name in names and (name in sizes or name in counted))


def expand(values: Tensor, site: str, shape: LayerShape) -> Tensor:
    """Repeat the gates of one granularity and layer, [..., n], over the neurons they cover, [..., site width]."""
    return values.repeat_interleave(SITE_WIDTH[site](shape) // values.shape[-1], dim=-1)


def fold(
    values: Mapping[str, Tensor], site: str, shape: LayerShape, combine: Callable[[Tensor, Tensor], Tensor] = mul
) -> Tensor | None:
    """Combine all gates above each neuron of a site, coarse to fine; None where no gate acts there.

    values: the gates of one layer by granularity, [..., n]. combine: function of a coarse and a fine gate. Returns
    [..., site width]: with `mul` the effective mask, with `torch.minimum` the smallest gate of the chain. Gates of a
    granularity are combined at the finest width reached so far, so a block gate costs one multiplication and not F.
    """
    folded: Tensor | None = None
    for name, granularity in GRANULARITIES.items():
        if site not in granularity.sites or name not in values:
            continue
        if site == MLP_OUTPUT and LEAVES[MLP_OUTPUT] not in values:
            return None
        gate = values[name]
        if folded is not None:
            gate = combine(folded.repeat_interleave(gate.shape[-1] // folded.shape[-1], dim=-1), gate)
        folded = gate
    return None if folded is None else expand(folded, site, shape)


def fold_sites(values: Mapping[str, Tensor], shape: LayerShape) -> dict[str, Tensor]:
    """Fold the gates of one layer into effective masks, [..., site width] by site; sites without gates are left out."""
    folded = {site: fold(values, site, shape) for site in LEAVES}
    return {site: mask for site, mask in folded.items() if mask is not None}


def node_counts(shapes: Sequence[LayerShape], granularities: Container[str]) -> dict[str, int]:
    """Count the nodes of the model: by granularity, and all site neurons as `total`."""
    counts = {name: sum(g.width(s) for s in shapes) for name, g in GRANULARITIES.items() if name in granularities}
    return counts | {"total": sum(s.heads * s.head_dim + s.intermediate for s in shapes)}
