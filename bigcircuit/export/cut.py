"""What is kept of each decoder layer, and how kept heads are arranged in key/value groups.

Shapes: H query heads, K key/value heads, d head width, F MLP neurons, D hidden size; primed ones are of the written layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.export.closed_nodes import ClosedInputs
from bigcircuit.model.granularity import ATTENTION, LEAVES, MLP, MLP_OUTPUT, SITE_WIDTH, LayerShape

PADDING = -1
"""Stands for a head or neuron that the base layer does not have; its rows and columns are zero."""


@dataclass(frozen=True)
class LayerCut:
    """One written layer: which parts of a base layer it has, in which order, and what the others add."""

    layer: int
    """Number of the base layer."""
    shape: LayerShape
    """Widths of the base layer."""
    heads: Tensor
    """Base query heads, int64 [H'], K' groups of H' / K' in order."""
    kv_heads: Tensor
    """Base key/value heads, int64 [K']."""
    neurons: Tensor
    """Base MLP neurons, int64 [F']."""
    opened: Mapping[str, Tensor]
    """Site -> which base neurons the circuit keeps, bool [site width]."""
    constants: Mapping[str, Tensor]
    """Site -> what closed base neurons output, float32 [site width]; empty for zero."""

    @property
    def written_shape(self) -> LayerShape:
        """Widths of the written layer."""
        return replace(self.shape, heads=len(self.heads), kv_heads=len(self.kv_heads), intermediate=len(self.neurons))

    def closed_inputs(self, site: str, transposed: bool = False) -> ClosedInputs:
        """What is closed at the output projection of a site. transposed: as of its weight."""
        outputs = self.opened.get(MLP_OUTPUT) if site == MLP else None
        return ClosedInputs(
            opened=self.opened[site],
            outputs=outputs,
            constant=self.constants.get(site),
            output_constant=None if outputs is None else self.constants.get(MLP_OUTPUT),
            transposed=transposed,
        )

    @property
    def biased(self) -> tuple[bool, bool]:
        """Whether the outputs of attention and of the MLP need a bias for what closed neurons add."""
        return self.closed_inputs(ATTENTION).needs_bias, self.closed_inputs(MLP).needs_bias

    def is_closed(self, site: str) -> bool:
        """Whether no neuron of a site is kept."""
        return not bool(self.opened[site].any())

    def groups(self) -> list[list[int]]:
        """Kept query heads of each kept key/value group of the base layer."""
        return kept_groups(self.opened[ATTENTION], self.shape)


def kept_groups(opened: Tensor, shape: LayerShape) -> list[list[int]]:
    """List the kept query heads by key/value group; groups without any are left out. opened: bool [H d]."""
    kept = opened.view(shape.heads, shape.head_dim).any(1).nonzero().flatten().tolist()
    size = shape.heads // shape.kv_heads
    groups = [[head for head in kept if head // size == group] for group in range(shape.kv_heads)]
    return [group for group in groups if group]


def cuts_in_place(masks: Mapping[str, Tensor], shapes: Sequence[LayerShape], ablation: Ablation) -> list[LayerCut]:
    """Make a cut of every layer that leaves all shapes as they are, closed heads and neurons replaced by padding.

    masks: bool [L, n] by granularity. ablation: without a corrupted stream, and with constants, if any, that are the same at all
    positions.
    """
    cuts = []
    for index, shape in enumerate(shapes):
        opened = {site: masks[leaf][index, : SITE_WIDTH[site](shape)] for site, leaf in LEAVES.items() if leaf in masks}
        constants = {
            site: values[0, index, 0, : SITE_WIDTH[site](shape)]
            for site, values in (ablation.constants or {}).items()
            if site in opened
        }
        heads = opened[ATTENTION].view(shape.heads, shape.head_dim).any(1)
        groups = heads.view(shape.kv_heads, -1).any(1)
        cuts.append(
            LayerCut(
                index, shape, _padded(heads), _padded(groups), _padded(opened[MLP]), opened=opened, constants=constants
            )
        )
    return cuts


def _padded(kept: Tensor) -> Tensor:
    """Number what is kept by its place, and put PADDING in the other places."""
    return torch.where(kept, torch.arange(len(kept)), PADDING)


class HeadArrangement(NamedTuple):
    """Number of key/value heads, and of query heads that share each."""

    kv_heads: int
    per_group: int

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.kv_heads * self.per_group


def arrangements(layers: Sequence[Sequence[Sequence[int]]], shape: LayerShape) -> Iterator[HeadArrangement]:
    """List the arrangements that hold the kept heads of all given layers, the one with the fewest parameters first.

    A group with more kept heads than another may be divided: its key/value head is then written twice. Where the model has one
    key/value head, or one for each query head, nothing is divided. layers: kept heads by group, of each layer.
    """
    size = shape.heads // shape.kv_heads
    largest = max((len(group) for groups in layers for group in groups), default=1)
    found = []
    for per_group in [largest] if shape.kv_heads == 1 else range(1, size + 1):
        needed = max((sum(-(-len(group) // per_group) for group in groups) for groups in layers), default=0)
        kv_heads = range(max(needed, 1), shape.kv_heads + 1)  # more would need a larger cache than the base
        found += [HeadArrangement(kv, per_group) for kv in kv_heads]
    return iter(sorted(found, key=lambda one: (one.heads + one.kv_heads, one.kv_heads)))


def arranged(cut: LayerCut, arrangement: HeadArrangement) -> LayerCut:
    """Move the kept heads of a layer into an arrangement that holds them, with padding where there are fewer."""
    size, heads, kv_heads = cut.shape.heads // cut.shape.kv_heads, [], []
    for group in cut.groups():
        for start in range(0, len(group), arrangement.per_group):
            part = group[start : start + arrangement.per_group]
            heads += part + [PADDING] * (arrangement.per_group - len(part))
            kv_heads.append(group[0] // size)
    heads += [PADDING] * (arrangement.heads - len(heads))
    kv_heads += [PADDING] * (arrangement.kv_heads - len(kv_heads))
    return replace(cut, heads=torch.tensor(heads), kv_heads=torch.tensor(kv_heads))


def with_all_heads(cut: LayerCut) -> LayerCut:
    """Leave queries, keys and values of a layer as they are; only the output projection closes heads."""
    return replace(cut, heads=torch.arange(cut.shape.heads), kv_heads=torch.arange(cut.shape.kv_heads))


def narrowed(cut: LayerCut, width: int | None = None) -> LayerCut:
    """Leave out the closed MLP neurons of a layer. width: MLP neurons to write, the others padding; by default what is kept."""
    kept = cut.opened[MLP].nonzero().flatten()
    padding = torch.full(((width or max(len(kept), 1)) - len(kept),), PADDING)
    return replace(cut, neurons=torch.cat([kept, padding]))


def without_closed_blocks(cuts: Sequence[LayerCut], *, projection_biases: bool) -> list[LayerCut]:
    """Leave out the layers that add nothing to the residual stream; one layer is always left.

    projection_biases: whether the projections of the base model have biases, which closed neurons do not take away.
    """
    if projection_biases:
        return list(cuts)
    kept = [cut for cut in cuts if not (cut.is_closed(ATTENTION) and cut.is_closed(MLP)) or any(cut.biased)]
    return kept or list(cuts[:1])
