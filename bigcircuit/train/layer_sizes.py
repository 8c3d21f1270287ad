"""Sizes that suit an export: equal layers, multiples of MLP neurons, a share of the parameters.

`discretise` chooses nodes by their strength over all layers. Here the choice is made within what such settings allow, so that they
hold exactly in the circuit that is validated and written.

Shapes: L layers, K key/value groups of H / K query heads, d head width, F MLP neurons.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.circuit.masks import complete_masks
from bigcircuit.config.schema import Config, TargetConfig
from bigcircuit.errors import UserError
from bigcircuit.gates.discretise import Masks, discretise
from bigcircuit.model.granularity import (
    ATTENTION,
    COUNTED,
    GRANULARITIES,
    MLP,
    MLP_OUTPUT,
    SITE_WIDTH,
    LayerShape,
    fold,
    granularities_of,
    widest,
)
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.model.sites import FrozenModel

_TIE = 1e-9
"""Weight of the sum of a chain beside its weakest gate, log_alpha being within a few units of 0."""


class LayerSizes(NamedTuple):
    """What every kept block keeps."""

    kv_groups: int
    per_group: int
    """Query heads of each group."""
    neurons: int
    """MLP neurons."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_groups * self.per_group


def sized_masks(log_alpha: Mapping[str, Tensor], frozen: FrozenModel, target: TargetConfig) -> Masks:
    """Decide the masks of one member in the sizes that it asks for. log_alpha: as `discretise` takes it.

    Sizes are met exactly where the settings allow it, else from below; a share of the parameters is never exceeded.
    """
    sizes = target.sizes()
    free = discretise(log_alpha, frozen.shapes, sizes)
    if not target.layout():
        return free
    if target.per_layer == "uniform":
        return _uniform(log_alpha, frozen, target, free)

    def of_total(total: int) -> Masks:
        found = discretise(log_alpha, frozen.shapes, {**sizes, "total": total}) if "total" in sizes else free
        return _in_multiples(found, log_alpha, frozen.shapes, target.multiple_of)

    if target.parameters is None:
        return of_total(sizes.get("total", 0))
    nodes = sum(SITE_WIDTH[site](shape) for shape in frozen.shapes for site in COUNTED)
    return of_total(_largest(nodes, lambda total: _fits(of_total(total), frozen, target.parameters)))


def check_layer_sizes(members: Sequence[Config], skeleton: FrozenModel) -> None:
    """Raises UserError for sizes that no circuit of the model can have. skeleton: the model without weights."""
    for target, gated in ((member.target, member.gates.granularities) for member in members):
        if not target.layout():
            continue
        narrowest, multiple = min(shape.intermediate for shape in skeleton.shapes), target.multiple_of
        if multiple > max(narrowest, 1):
            raise UserError(
                f"target.multiple_of is {multiple} and an MLP of the model has {narrowest} neurons; lower target.multiple_of"
            )
        if target.per_layer == "uniform":
            if "mlp_output" in gated:
                raise UserError(
                    "target.per_layer is uniform, which keeps MLP outputs whole; leave mlp_output out of gates.granularities"
                )
            _check_uniform(target, skeleton)
        elif target.parameters is not None:
            _check_share(target, target.parameters, gated, skeleton)
        if target.per_layer == "free" and (asked := target.mlp_neuron) is not None and asked % multiple:
            raise _not_reachable("mlp_neuron", asked, multiple, "multiples of target.multiple_of")


def _check_share(target: TargetConfig, share: float, gated: Sequence[str], skeleton: FrozenModel) -> None:
    """Raises UserError where nodes without gates, or with sizes of their own, keep more than the share that is asked for."""
    names = [name for name in granularities_of(skeleton.shapes) if name in gated]
    same = {name: torch.zeros(len(skeleton.shapes), widest(skeleton.shapes, name)) for name in names}
    counted = count_parameters(skeleton, discretise(same, skeleton.shapes, {**target.sizes(), "total": 1}))
    if counted.kept > share * counted.total:
        raise UserError(
            f"target.parameters is {share:g}, and with a single neuron of attention, mixers and MLPs "
            f"{counted.kept / counted.total:.2g} of the parameters are kept, by nodes without gates or with sizes of their own; "
            "raise it, or lower those sizes (of experts: target.expert)"
        )


def _check_uniform(target: TargetConfig, skeleton: FrozenModel) -> None:
    shape, sizes = skeleton.shapes[0], target.sizes()
    if len(set(skeleton.shapes)) > 1 or not (shape.heads and shape.intermediate) or shape.experts or shape.mixer_heads:
        raise UserError(
            "target.per_layer is uniform and the layers of the model are not alike, or not of attention and a dense MLP; leave it "
            "out"
        )
    for name in ("attention", "mlp", "mlp_output"):
        if name in sizes:
            raise UserError(
                f"target.per_layer is uniform, in which every kept block has each sub-layer; leave target.{name} out"
            )
    blocks = sizes.get("block", len(skeleton.shapes))
    units = {"kv_group": 1, "head": 1, "attention_neuron": shape.head_dim, "mlp_neuron": target.multiple_of}
    for name, unit in units.items():
        if name in sizes and sizes[name] % (blocks * unit):
            raise _not_reachable(name, sizes[name], blocks * unit, f"the same in {blocks} blocks")
    widest = blocks * (shape.intermediate // target.multiple_of * target.multiple_of)
    if (asked := sizes.get("mlp_neuron", 0)) > widest:
        raise UserError(
            f"target.mlp_neuron is {asked} and {blocks} blocks keep {widest} at most; lower it, or raise target.block"
        )
    arrangements = list(_arrangements(target, shape, blocks))
    if not arrangements:
        raise UserError(
            f"target.per_layer is uniform, and no number of key/value groups (of {shape.kv_heads}) with equally many query heads "
            f"(of {shape.heads // shape.kv_heads} each) has the sizes of target.kv_group, target.head and "
            "target.attention_neuron together; change one of them"
        )
    least = _least(arrangements, target, blocks)
    neurons = blocks * (least.heads * shape.head_dim + least.neurons)
    if target.parameters is None and sizes.get("total", neurons) < neurons:
        raise UserError(
            f"target.total is {sizes['total']}, and the smallest circuit of equal layers keeps {neurons:,}; raise it, or lower "
            "target.block or target.multiple_of"
        )
    if target.parameters is not None:
        strength = _Strengths.ones(skeleton.shapes)
        counted = count_parameters(skeleton, strength.masks(torch.arange(len(skeleton.shapes)) < blocks, least))
        if counted.kept > target.parameters * counted.total:
            raise UserError(
                f"target.parameters is {target.parameters:g}, and the smallest circuit of equal layers keeps "
                f"{counted.kept / counted.total:.2g} of the parameters; raise it, or lower target.block or target.multiple_of"
            )


def _not_reachable(name: str, asked: int, unit: int, why: str) -> UserError:
    below = asked // unit * unit
    return UserError(f"target.{name} is {asked} and has to be {why}: give {below or unit} or {below + unit}")


def _arrangements(target: TargetConfig, shape: LayerShape, blocks: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs (key/value groups, query heads in each) of a layer that the sizes asked for allow."""
    sizes = target.sizes()
    for groups in range(1, shape.kv_heads + 1):
        for per_group in range(1, shape.heads // shape.kv_heads + 1):
            heads = groups * per_group
            has = {"kv_group": groups, "head": heads, "attention_neuron": heads * shape.head_dim}
            if all(sizes[name] == blocks * count for name, count in has.items() if name in sizes):
                yield groups, per_group


def _least(arrangements: Sequence[tuple[int, int]], target: TargetConfig, blocks: int) -> LayerSizes:
    groups, per_group = min(arrangements, key=lambda pair: (pair[0] * pair[1], pair[0]))
    return LayerSizes(groups, per_group, target.sizes().get("mlp_neuron", blocks * target.multiple_of) // blocks)


class _Strengths(NamedTuple):
    """Strengths of the nodes of layers that are alike: the weakest log_alpha of a neuron's chain, the largest of a head's."""

    shapes: Sequence[LayerShape]
    heads: Tensor
    """float64 [L, K, H / K]"""
    neurons: Tensor
    """float64 [L, F]"""

    @classmethod
    def of(cls, log_alpha: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> "_Strengths":
        shape = shapes[0]
        heads = _strengths(log_alpha, shapes, ATTENTION).view(len(shapes), shape.kv_heads, -1, shape.head_dim).amax(-1)
        return cls(shapes, heads, _strengths(log_alpha, shapes, MLP))

    @classmethod
    def ones(cls, shapes: Sequence[LayerShape]) -> "_Strengths":
        """Equal strengths, for sizes that do not depend on which nodes are kept."""
        return cls.of({}, shapes)

    def chosen_heads(self, groups: int, per_group: int) -> Tensor:
        """Mark the strongest heads of the strongest groups of each layer, bool [L, K, H / K]."""
        inside = _strongest(self.heads, per_group)
        best = self.heads.sigmoid().masked_fill(~inside, 0).sum(-1)
        return inside & _strongest(best, groups).unsqueeze(-1)

    def masks(self, blocks: Tensor, sizes: LayerSizes) -> Masks:
        """Make the masks of equal layers. blocks: which are kept, bool [L]."""
        heads = self.chosen_heads(sizes.kv_groups, sizes.per_group).flatten(1) & blocks.unsqueeze(1)
        neurons = _strongest(self.neurons, sizes.neurons) & blocks.unsqueeze(1)
        return complete_masks({"head": heads, "mlp_neuron": neurons}, self.shapes)


def _uniform(log_alpha: Mapping[str, Tensor], frozen: FrozenModel, target: TargetConfig, free: Masks) -> Masks:
    """Choose equal sizes for all kept blocks near those of the free choice, and the strongest nodes in them."""
    shapes, sizes = frozen.shapes, target.sizes()
    shape, strength = shapes[0], _Strengths.of(log_alpha, shapes)
    # By themselves: beside other sizes fewer blocks may be left, such as under a total below that of whole MLPs.
    blocks = discretise(log_alpha, shapes, {"block": sizes.get("block", len(shapes))})["block"].any(1)
    count, multiple = int(blocks.sum()), target.multiple_of
    room = sizes.get("total") if target.parameters is None else None
    most = shape.intermediate // multiple
    wanted = int(free["attention_neuron"].sum()) / (count * shape.head_dim)

    def fitting(groups: int, per_group: int) -> LayerSizes | None:
        """The sizes with these heads and as many MLP neurons as are asked for; None if there is no room for any."""
        heads = groups * per_group
        if "mlp_neuron" in sizes:
            units = sizes["mlp_neuron"] // count // multiple
        elif target.parameters is not None:
            units = _largest(
                most,
                lambda n: _fits(
                    strength.masks(blocks, LayerSizes(groups, per_group, n * multiple)), frozen, target.parameters
                ),
            )
        elif room is not None:
            units = (room // count - heads * shape.head_dim) // multiple
        else:
            units = max(round(int(free["mlp_neuron"].sum()) / count / multiple), 1)
        found = LayerSizes(groups, per_group, min(units, most) * multiple)
        if room is not None and count * (heads * shape.head_dim + found.neurons) > room:
            return None
        return found if units >= 1 and _fits(strength.masks(blocks, found), frozen, target.parameters) else None

    def rank(pair: tuple[int, int]) -> tuple[float, float]:
        """How far a pair is from the free choice, then how weak its heads are."""
        held = strength.chosen_heads(*pair)[blocks]
        return abs(pair[0] * pair[1] - wanted), -float(strength.heads[blocks].sigmoid()[held].sum())

    for pair in sorted(_arrangements(target, shape, count), key=rank):
        if (chosen := fitting(*pair)) is not None:
            return strength.masks(blocks, chosen)
    raise AssertionError("check_layer_sizes has found sizes that fit")


def _in_multiples(masks: Masks, log_alpha: Mapping[str, Tensor], shapes: Sequence[LayerShape], multiple: int) -> Masks:
    """Round the MLP neurons of each layer down to a multiple, and give what is left to the layers that lost most."""
    if multiple == 1:
        return masks
    kept = masks["mlp_neuron"].sum(1)
    units = kept // multiple
    spare = int(kept.sum() - units.sum() * multiple) // multiple
    for layer in sorted(range(len(shapes)), key=lambda index: -int(kept[index] % multiple)):
        if spare and kept[layer] % multiple and (units[layer] + 1) * multiple <= shapes[layer].intermediate:
            units[layer], spare = units[layer] + 1, spare - 1
    strength, neurons = _strengths(log_alpha, shapes, MLP), torch.zeros_like(masks["mlp_neuron"])
    for index, shape in enumerate(shapes):  # open ones first: gates above others may have closed strong ones
        own = strength[index, : shape.intermediate].sigmoid() + 2 * masks["mlp_neuron"][index, : shape.intermediate]
        neurons[index, : shape.intermediate] = _strongest(own, int(units[index]) * multiple)
    others = {name: mask for name, mask in masks.items() if GRANULARITIES[name].sites in ((ATTENTION,), (MLP_OUTPUT,))}
    return complete_masks({**others, "mlp_neuron": neurons}, shapes)


def _strengths(log_alpha: Mapping[str, Tensor], shapes: Sequence[LayerShape], site: str) -> Tensor:
    """Weakest log_alpha above each neuron of a site, float64 [L, widest]; 0 where no gate acts.

    Among equal ones, such as neurons below one weak coarse gate, the sum of the chain decides, as in `discretise`: its share is
    below the distance of two float32 numbers.
    """
    rows = torch.full((len(shapes), max(SITE_WIDTH[site](shape) for shape in shapes)), -torch.inf, dtype=torch.float64)
    for index, shape in enumerate(shapes):
        gates = {
            name: values[index, : GRANULARITIES[name].width(shape)].detach().double().cpu()
            for name, values in log_alpha.items()
        }
        weakest, added = (fold(gates, site, shape, combine) for combine in (torch.minimum, torch.add))
        width = SITE_WIDTH[site](shape)
        rows[index, :width] = 0 if weakest is None or added is None else weakest + _TIE * added
    return rows


def _strongest(values: Tensor, count: int) -> Tensor:
    """Mark the largest values along the last dimension; equal ones by their place."""
    order = values.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, order, True)


def _fits(masks: Masks, frozen: FrozenModel, parameters: float | None) -> bool:
    if parameters is None:
        return True
    counted = count_parameters(frozen, masks)
    return counted.kept <= parameters * counted.total


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """Find the largest number up to `most` that fits, where all smaller ones do, by bisection; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
