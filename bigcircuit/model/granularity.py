"""Granularities: the kinds of nodes of a layer, and how their gates fold into the sites.

Shapes: P members, B examples, L layers, n nodes of a granularity in one layer, H query heads, D hidden size, F ffn width.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Units of one decoder layer, by kind of site. A layer without a site of a kind has 0 of its units."""

    heads: int
    """Query heads H."""
    kv_heads: int
    """Key/value heads; query heads are grouped over them in order."""
    head_dim: int
    """Neurons of a head: the width of its values."""
    intermediate: int
    """MLP neurons F, of a mixture of experts those of its shared experts."""
    hidden: int
    """Outputs of the MLP's down projection: the residual width D, or 0 in a layer without an MLP."""
    mixer_heads: int = 0
    """Heads of a mixer that is no attention; 1 where it has channels and no heads."""
    mixer_dim: int = 0
    """Neurons of such a head."""
    experts: int = 0
    """Routed experts E."""
    expert_width: int = 0
    """Neurons of an expert."""
    expert_output: int = field(default=0, compare=False)
    """Width of what an expert writes, as a rule the residual width D; 0 in shapes read from a circuit file."""
    expert_bias: bool = field(default=False, compare=False)
    """Whether the down projection of an expert has a bias; False in shapes read from a circuit file."""


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


ATTENTION, MLP, MLP_OUTPUT, MIXER = "attention", "mlp", "mlp_output", "mixer"
"""Sites: input of the attention output projection, input and output of the MLP down projection, input of the output projection of
a mixer that is no attention (linear attention, state space model, convolution)."""
EXPERT, EXPERT_NEURON = "expert", "expert_neuron"
"""Sites of a mixture: what the experts of a token add, and the input of their down projections. One of the two has masks."""
COUNTED = (ATTENTION, MLP, MIXER)
"""Sites whose neurons `total` counts. Experts have many times as many neurons, and targets of their own."""
_MLP_SITES = (MLP, MLP_OUTPUT, EXPERT, EXPERT_NEURON)

GRANULARITIES: dict[str, Granularity] = {
    "block": Granularity("blocks", lambda _: 1, (ATTENTION, MIXER, *_MLP_SITES), ()),
    "attention": Granularity("attention sub-layers", lambda s: min(s.heads, 1), (ATTENTION,), ("block",)),
    "mlp": Granularity("MLP sub-layers", lambda s: min(s.intermediate + s.experts, 1), _MLP_SITES, ("block",)),
    "kv_group": Granularity("key/value groups", lambda s: s.kv_heads, (ATTENTION,), ("block", "attention")),
    "head": Granularity("heads", lambda s: s.heads, (ATTENTION,), ("block", "attention", "kv_group")),
    "attention_neuron": Granularity(
        "attention neurons", lambda s: s.heads * s.head_dim, (ATTENTION,), ("block", "attention", "kv_group", "head")
    ),
    "mlp_neuron": Granularity("MLP neurons", lambda s: s.intermediate, (MLP,), ("block", "mlp")),
    "mlp_output": Granularity("MLP outputs", lambda s: s.hidden, (MLP_OUTPUT,), ("block", "mlp")),
    # Places in this table are keys of noise: new entries go to the end.
    "mixer": Granularity("mixers", lambda s: min(s.mixer_heads, 1), (MIXER,), ("block",)),
    "mixer_head": Granularity("mixer heads", lambda s: s.mixer_heads, (MIXER,), ("block", "mixer")),
    "mixer_neuron": Granularity(
        "mixer neurons", lambda s: s.mixer_heads * s.mixer_dim, (MIXER,), ("block", "mixer", "mixer_head")
    ),
    "expert": Granularity("experts", lambda s: s.experts, (EXPERT, EXPERT_NEURON), ("block", "mlp")),
    "expert_neuron": Granularity(
        "expert neurons", lambda s: s.experts * s.expert_width, (EXPERT_NEURON,), ("block", "mlp", "expert")
    ),
}
"""Name of a granularity -> its entry, coarse before fine: the parents of a granularity come before it."""

EVERYWHERE = ("block", "attention", "mlp", "kv_group", "head", "attention_neuron", "mlp_neuron")
"""Granularities of which every circuit has masks; of the others only where the model has nodes."""

GATED = tuple(n for n in GRANULARITIES if n not in ("kv_group", "mlp_output", "expert_neuron"))
"""Granularities that get gates by default."""

NODE_NAMES = {"total": "all neurons"} | {name: granularity.nodes for name, granularity in GRANULARITIES.items()}
"""Name of a granularity, or `total` -> plural noun for its nodes."""

LEAVES = {
    ATTENTION: "attention_neuron",
    MLP: "mlp_neuron",
    MLP_OUTPUT: "mlp_output",
    MIXER: "mixer_neuron",
    EXPERT: "expert",
    EXPERT_NEURON: "expert_neuron",
}
"""Site -> granularity whose nodes are the smallest that are closed there: single neurons, or experts."""

SITE_WIDTH: dict[str, Callable[[LayerShape], int]] = {site: GRANULARITIES[leaf].width for site, leaf in LEAVES.items()}
"""Site -> number of its neurons in a layer."""

VALUE_WIDTH: dict[str, Callable[[LayerShape], int]] = SITE_WIDTH | {
    EXPERT: lambda s: s.experts * s.expert_output,
    EXPERT_NEURON: lambda s: s.experts * (s.expert_width + s.expert_bias),
}
"""Site -> number of values that its nodes have at a token, so many constants an ablation holds for a layer: one a neuron, D an
expert, and, with neurons of experts, one for the bias of each expert's down projection, by which its routing weight counts."""


def has_masks(site: str, names: Container[str]) -> bool:
    """Whether a site has masks where the granularities `names` have: outputs of MLPs and neurons of experts are optional."""
    if site == MLP_OUTPUT:
        return LEAVES[site] in names
    return site not in (EXPERT, EXPERT_NEURON) or (LEAVES[EXPERT_NEURON] in names) == (site == EXPERT_NEURON)


def sites_of(shapes: Sequence[LayerShape], names: Container[str]) -> tuple[str, ...]:
    """List the sites of a model that have masks where the granularities `names` have; attention and MLP always."""
    return tuple(
        site
        for site in LEAVES
        if has_masks(site, names) and (LEAVES[site] in EVERYWHERE or any(SITE_WIDTH[site](shape) for shape in shapes))
    )


def measured_sites(shapes: Sequence[LayerShape], names: Container[str] = ()) -> tuple[str, ...]:
    """List the sites of a model whose activations are measured for masks of the granularities `names`.

    These are all sites, but for neurons of experts where `names` have none: most models have more of these than of all others.
    """
    neurons = [EXPERT_NEURON] if LEAVES[EXPERT_NEURON] in names and any(map(SITE_WIDTH[EXPERT_NEURON], shapes)) else []
    return *sites_of(shapes, (LEAVES[MLP_OUTPUT],)), *neurons


def learned_sites(shapes: Sequence[LayerShape], names: Container[str]) -> list[str]:
    """List the sites of a model whose constants are learned: those with nodes on which gates of the granularities `names` act."""
    return [site for site in gated_sites(names) if any(map(SITE_WIDTH[site], shapes))]


def widest_values(shapes: Sequence[LayerShape], site: str) -> int:
    """Number of values of a site in the layer with the most; 1 where no layer has any, as for `widest`."""
    return max(1, *map(VALUE_WIDTH[site], shapes))


def fits_values(width: int, shapes: Sequence[LayerShape], site: str) -> bool:
    """Whether rows of constants of a site have their width; as far as known, where shapes are those of a circuit file."""
    experts = widest(shapes, LEAVES[EXPERT])
    if site in (EXPERT, EXPERT_NEURON) and not any(shape.expert_output for shape in shapes):
        least = widest(shapes, LEAVES[site])
        return width % experts == 0 and (width >= least if site == EXPERT else width in (least, least + experts))
    return width == widest_values(shapes, site)


def granularities_of(shapes: Sequence[LayerShape], names: Container[str] = tuple(GRANULARITIES)) -> list[str]:
    """List the granularities among `names` of which a model has nodes, and those of which every circuit has masks."""
    return [
        name
        for name, granularity in GRANULARITIES.items()
        if name in names and (name in EVERYWHERE or any(granularity.width(shape) for shape in shapes))
    ]


def widest(shapes: Sequence[LayerShape], name: str) -> int:
    """Number of nodes of a granularity in the layer with the most; 1 where no layer has any, so that no tensor is empty."""
    return max(1, *(GRANULARITIES[name].width(shape) for shape in shapes))


def finest(names: Container[str], site: str) -> str | None:
    """Return the finest of the granularities `names` that acts at a site; None if none acts there."""
    acting = [name for name in GRANULARITIES if name in names and site in GRANULARITIES[name].sites]
    return acting[-1] if acting else None


def gated_sites(names: Container[str]) -> list[str]:
    """Return the sites at which gates of the granularities `names` act."""
    return [site for site in LEAVES if finest(names, site) is not None and has_masks(site, names)]


def counted_sites(names: Container[str]) -> list[str]:
    """Return the sites whose neurons `total` counts where the granularities `names` have gates: mixers with gates of their own."""
    own = (name for name, granularity in GRANULARITIES.items() if granularity.sites == (MIXER,))
    has_mixers = any(name in names for name in own)
    return [site for site in COUNTED if site != MIXER or has_mixers]


def top_k_granularities(names: Sequence[str], sizes: Container[str]) -> tuple[str, ...]:
    """Return the granularities of `names` that top-k gates need: those with a target size, and those that `total` counts.

    sizes: granularities with a target size, and "total" where all neurons have a target size.
    """
    counted = {finest(names, site) for site in counted_sites(names)} if "total" in sizes else set()
    return tuple(name for name in GRANULARITIES if name in names and (name in sizes or name in counted))


def spread(values: Tensor, width: int) -> Tensor:
    """Repeat each of n values over the nodes below it, [..., n] -> [..., width]; nothing is above or below no nodes."""
    return values.repeat_interleave(width // values.shape[-1], dim=-1) if width else values[..., :0]


def expand(values: Tensor, site: str, shape: LayerShape) -> Tensor:
    """Repeat the gates of one granularity and layer, [..., n], over the neurons they cover, [..., site width]."""
    return spread(values, SITE_WIDTH[site](shape))


def fold(
    values: Mapping[str, Tensor], site: str, shape: LayerShape, combine: Callable[[Tensor, Tensor], Tensor] = mul
) -> Tensor | None:
    """Combine all gates above each neuron of a site, coarse to fine; None where no gate acts there.

    values: the gates of one layer by granularity, [..., n]. combine: function of a coarse and a fine gate. Returns
    [..., site width]: with `mul` the effective mask, with `torch.minimum` the smallest gate of the chain. Gates of a
    granularity are combined at the finest width reached so far, so a block gate costs one multiplication and not F.
    """
    if not has_masks(site, values):
        return None
    folded: Tensor | None = None
    for name, granularity in GRANULARITIES.items():
        if site not in granularity.sites or name not in values:
            continue
        gate = values[name]
        if folded is not None:
            gate = combine(spread(folded, gate.shape[-1]), gate)
        folded = gate
    return None if folded is None else expand(folded, site, shape)


def fold_sites(values: Mapping[str, Tensor], shape: LayerShape) -> dict[str, Tensor]:
    """Fold the gates of one layer into effective masks, [..., site width] by site, without sites that have no gates or neurons."""
    folded = {site: fold(values, site, shape) for site, width in SITE_WIDTH.items() if width(shape)}
    return {site: mask for site, mask in folded.items() if mask is not None}


def node_counts(shapes: Sequence[LayerShape], granularities: Container[str]) -> dict[str, int]:
    """Count the nodes of the model: by granularity that it has, and the neurons of attention, mixers and MLPs as `total`."""
    names = granularities_of(shapes, granularities)
    counts = {name: sum(GRANULARITIES[name].width(s) for s in shapes) for name in names}
    return counts | {"total": sum(SITE_WIDTH[site](s) for site in COUNTED for s in shapes)}


def count_total(counts: Mapping[str, int]) -> int:
    """Add up what `total` counts, of numbers by granularity."""
    return sum(counts.get(LEAVES[site], 0) for site in COUNTED)
