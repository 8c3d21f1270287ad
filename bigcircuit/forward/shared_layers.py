"""Layers that circuits share: circuits of one pass that have the same masks up to a layer are computed once up to it.

Shapes: P members, L layers, R rows of a batch, T tokens, D hidden size, B branches of a layer.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor


class Branches(NamedTuple):
    """Members by layer: those whose masks are the same up to and with the layer are one branch, whose rows run once."""

    members: list[list[int]]
    """By layer: a member of every branch, [B]."""
    parents: list[list[int]]
    """By layer: the branch of the layer before that every branch continues, [B]; 0 in the first layer."""
    of_member: list[int]
    """Branch of the last layer, of every member, [P]."""

    @classmethod
    def of(cls, circuits: Sequence[Sequence[Hashable]]) -> "Branches":
        """Find the branches of P circuits from a key of the masks of each layer, [P][L]: equal keys are equal masks."""
        members: list[list[int]] = []
        parents: list[list[int]] = []
        branch = [0] * len(circuits)
        for keys in zip(*circuits, strict=True):
            found: dict[tuple[int, Hashable], int] = {}
            members.append([])
            parents.append([])
            for member, key in enumerate(zip(branch, keys, strict=True)):
                if key not in found:
                    found[key] = len(found)
                    members[-1].append(member)
                    parents[-1].append(key[0])
                branch[member] = found[key]
        return cls(members, parents, branch)

    @property
    def is_useful(self) -> bool:
        """Whether some layer has fewer branches than there are members."""
        return any(len(branches) < len(self.of_member) for branches in self.members)

    def enter(self, layer: int, hidden: Tensor, rows: int) -> Tensor:
        """Give every branch of a layer the hidden state that it continues: [B' R, T, D] -> [B R, T, D]. rows: R."""
        before = hidden.unflatten(0, (-1, rows))
        if layer == 0:
            before = before[:1]
        if self.parents[layer] == list(range(len(before))):
            return before.flatten(0, 1)
        return before[self.parents[layer]].flatten(0, 1)
