"""What closed nodes of a mixture output under ablations with constants: means, means with noise, learned constants.

The value of a node is 0 at a token that the router did not send to its expert, and a mean over tokens counts these zeros. So a
closed node outputs its constant at every token, whichever experts the router chose there, and closing all experts of a layer gives
the mean of all that they add. For experts that are chosen often the constant is large, for others it is nearly nothing.

Shapes: P members, R rows, T tokens, N = R * T, E experts, D width of what an expert writes, w values of a site, n its nodes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bigcircuit.ablation.ablation import Ablation, Tokens

WriteClosed = Callable[[Tensor, Tensor], Tensor]
"""Values [T or 1, w] and how far each node is closed [R or 1, n] -> what these add, [R or 1, T or 1, D]."""


class ClosedConstants(NamedTuple):
    """Constants of one site of one layer at the tokens of a batch."""

    ablation: Ablation
    site: str
    layer: int
    width: int
    """w, see VALUE_WIDTH."""
    tokens: Tokens

    def values(self) -> Tensor:
        """Return the constants at all tokens, [P or 1, R or 1, T or 1, w]."""
        found = self._at(self.tokens)
        assert found is not None  # the kind has constants
        return found

    def added(self, member: int, shut: Tensor, rows: int, length: int, write: WriteClosed) -> Tensor:
        """Compute what closed nodes of one member add, [N, D]. shut: 1 - masks, [R or 1, n]; rows: R; length: T."""
        if not self._by_row:
            found = write(self._of(member, self.tokens), shut)
            return found.expand(rows, length, -1).reshape(rows * length, -1)
        positions, examples = self.tokens
        parts = []
        for row in range(rows):
            own = slice(row, row + 1) if len(positions) > 1 else slice(None)
            tokens = Tokens(positions[own], examples[row : row + 1])
            closed = shut[row : row + 1] if len(shut) > 1 else shut
            parts.append(self._one_row(member, tokens, closed, write).expand(1, length, -1))
        return torch.cat(parts).reshape(rows * length, -1)

    @property
    def _by_row(self) -> bool:
        """Whether constants may differ between the rows of a batch."""
        kind = self.ablation.kind
        return kind.sample is not None or (kind.per_position and len(self.tokens.positions) > 1)

    def _one_row(self, member: int, tokens: Tokens, shut: Tensor, write: WriteClosed) -> Tensor:
        """Constants of all experts at all tokens of a row are many: they are made again for the backward pass."""

        def run(closed: Tensor) -> Tensor:
            return write(self._of(member, tokens), closed)

        if not torch.is_grad_enabled():
            return run(shut)
        return checkpoint(run, shut, use_reentrant=False, preserve_rng_state=False)

    def _of(self, member: int, tokens: Tokens) -> Tensor:
        """Return the constants of a member at the tokens of one row, or where all rows have the same: [T or 1, w]."""
        found = self._at(tokens)
        assert found is not None
        return found[member if len(found) > 1 else 0, 0]

    def _at(self, tokens: Tokens) -> Tensor | None:
        return self.ablation.at(self.site, self.layer, self.width, tokens)


def write_experts(values: Tensor, shut: Tensor) -> Tensor:
    """Add up the constants of closed experts: values [T or 1, E * D], shut [R or 1, E], see `WriteClosed`."""
    return torch.einsum("re,ted->rtd", shut, values.view(len(values), shut.shape[-1], -1))
