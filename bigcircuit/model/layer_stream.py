"""Layers that flow from the files of the checkpoint through the device, for weights larger than its memory.

Weights that need no cast are views of mapped files. On CPU they are used where they are and the next layer is read ahead. On a
GPU two slots of a layer's size take turns: one is computed with while the next layer is copied into the other. Every layer is
read once forward and once backward, for both streams and all members, because a hook brings it before the layer's first and the
gradient's first use.
"""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from bigcircuit.model.sites import FrozenModel

_ALIGNMENT = 256
"""Bytes at whose multiples a parameter starts in a slot, as in torch's allocator."""
_POPULATE_READ, _WILL_NEED = 22, 3
"""Advice to Linux about mapped pages: read them now (5.14 and later); start to read them."""
_CHUNK = 1 << 26
"""Bytes read ahead by one call."""

Bring = Callable[[int, int], None]
"""Callback with the layer that is used now and the one that is used next."""


def streamed(frozen: FrozenModel, device: torch.device, *, slots: bool | None = None) -> FrozenModel:
    """Have the layers of a model that was loaded on CPU flow through a device; all other weights are moved to the device.

    slots: whether layers are copied into slots on the device; by default on all devices but the CPU.
    """
    modules = [layer.module for layer in frozen.layers]
    if slots is None:
        slots = device.type != "cpu"
    if not slots:
        read_ahead(frozen)
        return frozen
    store = _Slots([list(module.parameters()) for module in modules], device)
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    for parameter in frozen.model.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.to(device)
    for module in frozen.model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=name not in module._non_persistent_buffers_set)
    _follow(modules, store.bring)
    for module in modules:
        module.register_forward_pre_hook(store.open_graph, prepend=True)
        module.register_forward_hook(store.close_graph, always_call=True)
    return replace(frozen, device=device)


def read_ahead(frozen: FrozenModel, piece: str = "data") -> None:
    """Read the files of the next layer while a layer is computed with.

    piece: attribute of a parameter with what this rank reads of it, a tensor in mapped memory.
    """
    ranges = [[_range(getattr(p, piece)) for p in layer.module.parameters()] for layer in frozen.layers]
    ranges[-1].append(_range(cast(Tensor, frozen.head.weight)))
    reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    reading: Future | None = None

    def bring(_: int, following: int) -> None:
        nonlocal reading
        if reading is None or reading.done():
            reading = reader.submit(_read, ranges[following])

    _follow([layer.module for layer in frozen.layers], bring)


def _range(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of a tensor without gaps."""
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()


def _read(ranges: Sequence[tuple[int, int]]) -> None:
    """Read mapped memory, given by address and bytes, into the page cache."""
    with suppress(OSError, AttributeError):  # another C library
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for address, size in ranges:
            start = address - address % mmap.PAGESIZE
            for place in range(start, address + size, _CHUNK):
                length = min(_CHUNK, address + size - place)
                if advise(place, length, _POPULATE_READ):
                    advise(place, length, _WILL_NEED)


def _follow(modules: Sequence[nn.Module], bring: Bring) -> None:
    """Call `bring` before each layer is used: by a forward pass, and by the backward pass through it."""
    last = len(modules) - 1

    def forward(index: int, *_: Any) -> None:
        turn = max(last - 1, 0) if torch.is_grad_enabled() else 0
        bring(index, index + 1 if index < last else turn)

    def backward(index: int, _: Tensor) -> None:
        bring(index, index - 1 if index else min(1, last))

    def watch(index: int, _module: nn.Module, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(partial(backward, index))

    for index, module in enumerate(modules):
        module.register_forward_pre_hook(partial(forward, index), prepend=True)
        module.register_forward_hook(partial(watch, index))


class _Place(NamedTuple):
    """Where a parameter is: its source in mapped memory, its first byte in a slot."""

    parameter: nn.Parameter
    source: Tensor
    start: int


class _Saved(NamedTuple):
    """View of a layer's weights that a graph needs in the backward pass; the slot may hold another layer until then."""

    layer: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    """Entries from the start of the slot."""


class _Slots:
    """Two buffers on the device, each with room for the weights of any layer."""

    def __init__(self, layers: Sequence[Sequence[nn.Parameter]], device: torch.device) -> None:
        self._device = device
        self._layers: list[list[_Place]] = []
        size = 0
        for parameters in layers:
            places, end = [], 0
            for parameter in parameters:
                places.append(_Place(parameter, parameter.data, end))
                end += -(-parameter.numel() * parameter.element_size() // _ALIGNMENT) * _ALIGNMENT
            self._layers.append(places)
            size = max(size, end)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._addresses = [buffer.data_ptr() for buffer in self._buffers]
        self._held: list[int | None] = [None, None]
        self._current = 0
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="layer-stream")
        self._copies: list[Future | None] = [None, None]
        self._cuda = _CudaCopies(size, device) if device.type == "cuda" else None
        for places in self._layers:
            _take_away(places, device)
        self._hooks: list[Any] = []

    def bring(self, index: int, following: int) -> None:
        """Make the weights of a layer usable, and start to copy those of the layer that follows."""
        if self._held[self._current] != index:
            other = 1 - self._current
            if self._held[other] != index:
                self._start(index, other)
            if (before := self._held[self._current]) is not None:
                _take_away(self._layers[before], self._device)
            self._current = other
            self._wait(other)
            self._give(index, other)
        if following != index and self._held[1 - self._current] != following:
            self._start(following, 1 - self._current)

    def _start(self, index: int, slot: int) -> None:
        self._wait(slot)
        self._held[slot] = index
        used = self._cuda.used() if self._cuda else None
        self._copies[slot] = self._copier.submit(self._copy, index, slot, used)

    def _wait(self, slot: int) -> None:
        if (copy := self._copies[slot]) is not None:
            copy.result()
        if self._cuda:
            self._cuda.wait(slot)

    def _copy(self, index: int, slot: int, used: Any) -> None:
        if self._cuda:
            self._cuda.copy(self._layers[index], self._buffers[slot], slot, used)
            return
        for place in self._layers[index]:
            _view(self._buffers[slot], place).copy_(place.source)

    def _give(self, index: int, slot: int) -> None:
        for place in self._layers[index]:
            place.parameter.data = _view(self._buffers[slot], place)

    def open_graph(self, *_: Any) -> None:
        """Have a graph keep where weights are in a layer in place of views of a slot. Around checkpointing, not within."""
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        hooks.__enter__()
        self._hooks.append(hooks)

    def close_graph(self, *_: Any) -> None:
        """End what `open_graph` began."""
        self._hooks.pop().__exit__(None, None, None)

    def _pack(self, tensor: Tensor) -> Any:
        address = tensor.untyped_storage().data_ptr() if tensor.device == self._buffers[0].device else None
        if address not in self._addresses:
            return tensor
        layer = self._held[self._addresses.index(address)]
        assert layer is not None
        return _Saved(layer, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, saved: Any) -> Tensor:
        if not isinstance(saved, _Saved):
            return saved
        assert self._held[self._current] == saved.layer, "the layer's gradient comes while its weights are there"
        return self._buffers[self._current].view(saved.dtype).as_strided(saved.size, saved.stride, saved.offset)


def _view(buffer: Tensor, place: _Place) -> Tensor:
    size = place.source.numel() * place.source.element_size()
    return buffer[place.start : place.start + size].view(place.source.dtype).view(place.source.shape)


def _take_away(places: Sequence[_Place], device: torch.device) -> None:
    """Leave shapes in place of weights."""
    for place in places:
        place.parameter.data = torch.empty(1, dtype=place.source.dtype, device=device).expand(place.source.shape)


class _CudaCopies:
    """Copies of layers to a GPU beside its computation, through pinned memory of the host."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pinned = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._ready = [torch.cuda.Event() for _ in range(2)]

    def used(self) -> torch.cuda.Event:
        """Mark all that is queued on the GPU now: a slot may be overwritten after that."""
        event = torch.cuda.Event()
        event.record()
        return event

    def copy(self, places: Sequence[_Place], buffer: Tensor, slot: int, used: torch.cuda.Event) -> None:
        """Copy a layer into a slot; called in the copying thread."""
        self._ready[slot].synchronize()  # the pinned memory may still be read by the copy before
        for place in places:
            _view(self._pinned[slot], place).copy_(place.source)
        self._stream.wait_event(used)
        with torch.cuda.stream(self._stream):
            buffer.copy_(self._pinned[slot], non_blocking=True)
            self._ready[slot].record(self._stream)

    def wait(self, slot: int) -> None:
        """Have the GPU compute no further before the copy into a slot is done."""
        torch.cuda.current_stream().wait_event(self._ready[slot])
