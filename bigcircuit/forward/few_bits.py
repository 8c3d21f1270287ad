"""Activations that the backward pass needs, kept in few bits: memory below that of the plain pass, for gradients with an error.

After Few-Bit Backward (Novikov et al. 2022, arXiv 2202.00441), which rounds what nonlinearities keep. Here all activations but
those within attention are rounded, each group of values to steps of its own largest; weights, gates and what is small stay as
they are. The forward pass is exact. A value is rounded by its group alone, so no bit depends on the members or examples of a pass.
"""

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

GROUP = 64
"""Values with a scale of their own; what is left of a row is a group too."""
_SMALL = 256
"""Tensors with fewer values a row of the batch are kept. Of a row, because a tensor of more members has more rows."""
BITS = {"8bit": 8, "4bit": 4}
"""Value of `train.saved` -> bits of a value."""


class Packed(NamedTuple):
    """A rounded tensor."""

    codes: Tensor
    """uint8 [groups, GROUP], or half as wide with two values of 4 bits a byte."""
    scales: Tensor
    """Step of each group, in the dtype of the tensor, [groups, 1]."""
    shape: torch.Size
    bits: int


def pack(tensor: Tensor, bits: int) -> Packed:
    """Round a tensor [..., n] to 2^bits - 1 steps between minus and plus the largest value of each group of a row."""
    width = tensor.shape[-1]
    grouped = nn.functional.pad(tensor, (0, -width % GROUP)).reshape(-1, GROUP)
    half = 2 ** (bits - 1) - 1
    scales = grouped.abs().amax(1, keepdim=True) / half
    codes = (grouped / scales.where(scales > 0, torch.ones_like(scales))).round().clamp(-half, half).add(half)
    codes = codes.to(torch.uint8)
    if bits == 4:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    return Packed(codes, scales, tensor.shape, bits)


def unpack(packed: Packed) -> Tensor:
    """Return the rounded tensor."""
    codes = packed.codes
    if packed.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    values = (codes.to(packed.scales.dtype) - (2 ** (packed.bits - 1) - 1)) * packed.scales
    width = packed.shape[-1]
    return values.view(*packed.shape[:-1], -1)[..., :width]


class FewBitHooks:
    """Pack and unpack hooks of one pass. A tensor that several operations keep is packed once."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._packed: dict[tuple, Any] = {}

    def pack(self, tensor: Tensor) -> Any:
        # Frozen weights and rotary tables require no gradient. Queries, keys and values have four dimensions: from rounded ones
        # attention would compute other weights than the sums that it has kept exactly, which may exceed 1 without a bound.
        is_activation = tensor.requires_grad and tensor.dim() == 3 and 1 not in tensor.shape[-2:]
        if not is_activation or tensor.shape[-2:].numel() < _SMALL or not tensor.is_floating_point():
            return tensor
        storage = tensor.untyped_storage()
        key = (storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor._version)
        if key not in self._packed:
            self._packed[key] = pack(tensor.detach(), self._bits)
            weakref.finalize(storage, self._packed.pop, key, None)  # its address may be used again
        return self._packed[key]

    def unpack(self, saved: Any) -> Tensor:
        return unpack(saved) if isinstance(saved, Packed) else saved


def few_bits(saved: str) -> AbstractContextManager[Any]:
    """Keep what graphs made inside save for their backward passes as `train.saved` says: exact, 8bit or 4bit."""
    if saved not in BITS:
        return nullcontext()
    hooks = FewBitHooks(BITS[saved])
    return torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack)
