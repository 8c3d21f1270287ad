"""The granularities and how their gates fold into the sites.

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
    """One kind of node: how many a layer has, which sites its gates multiply, and what it is nested in."""

    width: Callable[[LayerShape], int]
    sites: tuple[str, ...]
    parents: tuple[str, ...]


ATTENTION, MLP, MLP_OUTPUT = "attention", "mlp", "mlp_output"
"""The places where gates act: the input of the attention output projection, of the MLP down projection, and its output."""

GRANULARITIES: dict[str, Granularity] = {
    "block": Granularity(lambda _: 1, (ATTENTION, MLP, MLP_OUTPUT), ()),
    "attention": Granularity(lambda _: 1, (ATTENTION,), ("block",)),
    "mlp": Granularity(lambda _: 1, (MLP, MLP_OUTPUT), ("block",)),
    "kv_group": Granularity(lambda s: s.kv_heads, (ATTENTION,), ("block", "attention")),
    "head": Granularity(lambda s: s.heads, (ATTENTION,), ("block", "attention", "kv_group")),
    "attention_neuron": Granularity(
        lambda s: s.heads * s.head_dim, (ATTENTION,), ("block", "attention", "kv_group", "head")
    ),
    "mlp_neuron": Granularity(lambda s: s.intermediate, (MLP,), ("block", "mlp")),
    "mlp_output": Granularity(lambda s: s.hidden, (MLP_OUTPUT,), ("block", "mlp")),
}
"""Coarse before fine: a node's ancestors come before it."""

NODES = {
    "total": "all neurons",
    "block": "blocks",
    "attention": "attention sub-layers",
    "mlp": "MLP sub-layers",
    "kv_group": "key/value groups",
    "head": "heads",
    "attention_neuron": "attention neurons",
    "mlp_neuron": "MLP neurons",
    "mlp_output": "MLP outputs",
}
"""Name of a granularity, or `total` -> what its nodes are called."""

SITE_WIDTH: dict[str, Callable[[LayerShape], int]] = {
    ATTENTION: GRANULARITIES["attention_neuron"].width,
    MLP: GRANULARITIES["mlp_neuron"].width,
    MLP_OUTPUT: GRANULARITIES["mlp_output"].width,
}
LEAVES = {ATTENTION: "attention_neuron", MLP: "mlp_neuron", MLP_OUTPUT: "mlp_output"}
"""The granularity whose nodes are the single neurons of a site."""


def finest(names: Container[str], site: str) -> str | None:
    """The finest of some granularities that acts at a site; None where none does."""
    acting = [name for name in GRANULARITIES if name in names and site in GRANULARITIES[name].sites]
    return acting[-1] if acting else None


def gated(names: Container[str]) -> list[str]:
    """The sites at which gates of some granularities act."""
    return [
        site
        for site, leaf in LEAVES.items()
        if finest(names, site) is not None and (site != MLP_OUTPUT or leaf in names)
    ]


def acting(names: Sequence[str], asked: Container[str]) -> tuple[str, ...]:
    """Of some granularities those that top-k gates need: what has a size, and what `total` is counted by."""
    counted = {finest(names, site) for site in (ATTENTION, MLP)} if "total" in asked else set()
    return tuple(name for name in GRANULARITIES if name in names and (name in asked or name in counted))


def expand(values: Tensor, site: str, shape: LayerShape) -> Tensor:
    """Repeat the gates of one granularity and layer, [..., n], over the neurons they cover, [..., site width]."""
    return values.repeat_interleave(SITE_WIDTH[site](shape) // values.shape[-1], dim=-1)


def fold(
    values: Mapping[str, Tensor], site: str, shape: LayerShape, combine: Callable[[Tensor, Tensor], Tensor] = mul
) -> Tensor | None:
    """Combine all gates above each neuron of a site, coarse to fine; None where no gate acts there.

    values: the gates of one layer by granularity, [..., n]. Returns [..., site width]: with `mul` the effective
    mask, with `torch.minimum` the weakest gate of the chain. Gates of a granularity multiply at the finest width that
    was reached so far, so a block gate costs one multiplication and not F.
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
    """Effective masks of one layer by site, leaving out sites that no gate acts on."""
    folded = {site: fold(values, site, shape) for site in LEAVES}
    return {site: mask for site, mask in folded.items() if mask is not None}
