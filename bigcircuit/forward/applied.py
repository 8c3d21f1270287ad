"""A circuit on a model object: every pass of the model inside a context is masked, whoever makes it.

Under interchange ablation the corrupted prompts run beside the clean ones, with a KV cache of their own; what is generated
continues both.

Shapes: R rows of a call, T new tokens, K tokens with those in the KV cache, C tokens of a corrupted prompt.
"""

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.errors import UserError
from bigcircuit.forward.pass_state import SiteMasks
from bigcircuit.forward.rows import TokenRows
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import site_masks
from bigcircuit.model.sites import FrozenModel

_ROW_METHODS = ("reorder_cache", "crop", "reset", "batch_repeat_interleave", "batch_select_indices")
"""Methods by which `generate` moves the rows or columns of a KV cache; that of the corrupted rows has to follow."""
_BY_ROW = ("attention_mask", "position_ids", "token_type_ids")
"""Arguments of a model with a row a prompt."""
_NOT_WITH_CORRUPTED = ("inputs_embeds", "output_hidden_states", "output_attentions")
"""Arguments whose rows or results would be those of two streams."""
_APPLIED: "WeakSet[nn.Module]" = WeakSet()
"""Models to which circuits are applied now."""
_APPLIED_PAIRED: "WeakSet[nn.Module]" = WeakSet()
"""Those of them that run corrupted prompts as well."""


class CorruptedPrompts:
    """Corrupted prompts that run beside the clean ones of the same length, and their KV caches."""

    def __init__(self, ids: Any) -> None:
        """ids: token ids [R, C] or [C]; or what a tokenizer returns for the prompts, whose padding is then compared."""
        mask = ids.get("attention_mask") if isinstance(ids, Mapping) else None
        self.ids = _integers(ids["input_ids"] if isinstance(ids, Mapping) else ids)
        self.mask = None if mask is None else _integers(mask)
        self._clean: Tensor | None = None
        self._others: WeakKeyDictionary[Cache, Cache] = WeakKeyDictionary()

    def beside(self, ids: Tensor, mask: Any, cache: Cache | None) -> Tensor:
        """Return the tokens of the corrupted rows for a call with these of the clean rows, both [R, T].

        Raises UserError where the prompts do not fit each other or the cache has no rows for the corrupted ones.
        """
        past = 0 if cache is None else int(cache.get_seq_length())
        prompts = _expanded(self.ids.to(ids.device), len(ids))
        if past == 0:
            self._check_prompt(ids, prompts, mask)
        elif cache not in self._others:
            raise UserError("past_key_values were computed without the corrupted prompts; begin with an empty cache")
        known = prompts[:, past : past + ids.shape[1]]
        return torch.cat([known, ids[:, known.shape[1] :]], dim=1)

    def _check_prompt(self, ids: Tensor, prompts: Tensor, mask: Any) -> None:
        length = prompts.shape[1]
        if self._goes_on(ids, length):
            return
        if ids.shape[1] != length:
            raise UserError(
                f"the prompt has {ids.shape[1]} tokens and corrupted_ids {length}; interchange ablation needs prompts of equal "
                "length (a continuation that is to be scored belongs to both)"
            )
        _check_padding(ids, prompts, mask, None if self.mask is None else _expanded(self.mask, len(ids)))
        self._clean = ids

    def _goes_on(self, ids: Tensor, length: int) -> bool:
        """Whether the call has a prompt that was checked before and its continuation: without a KV cache `generate` calls so."""
        if self._clean is None or ids.shape[1] <= length or len(ids) % len(self._clean):
            return False
        return torch.equal(ids[:, :length], _expanded(self._clean, len(ids)))

    def other_cache(self, cache: Cache) -> Cache:
        """Return the KV cache of the corrupted rows that belongs to that of the clean rows. Raises UserError if none can."""
        if cache not in self._others:
            if cache.get_seq_length():
                raise UserError(
                    "past_key_values were computed without the corrupted prompts; begin with an empty cache"
                )
            try:
                other = deepcopy(cache)
            except Exception as error:  # of the library, or of torch for streams of a device
                raise UserError(
                    f"a {type(cache).__name__} cannot be kept twice, for both prompts; leave cache_implementation out"
                ) from error
            for name in _ROW_METHODS:
                if hasattr(cache, name):
                    setattr(cache, name, partial(_on_both, other, name, getattr(cache, name)))
            self._others[cache] = other
        return self._others[cache]


def _on_both(other: Cache, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    getattr(other, name)(*args, **kwargs)
    return method(*args, **kwargs)


def _integers(ids: Any) -> Tensor:
    """Make a tensor [R, C] of token ids or a mask. Raises UserError for anything else."""
    try:
        found = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            "corrupted_ids are rows of different lengths or no token ids; pad them to one length"
        ) from error
    found = found.unsqueeze(0) if found.ndim == 1 else found
    if found.ndim != 2 or not found.numel() or found.is_floating_point():
        raise UserError(f"corrupted_ids has shape {list(found.shape)}; give token ids [rows, tokens]")
    return found.long()


def _expanded(prompts: Tensor, rows: int) -> Tensor:
    """Repeat every prompt for the beams or samples of its own. Raises UserError if the rows are not a multiple."""
    if rows % len(prompts):
        raise UserError(f"the call has {rows} row(s) and corrupted_ids {len(prompts)}; give one corrupted prompt a row")
    return prompts.repeat_interleave(rows // len(prompts), dim=0)


def _check_padding(ids: Tensor, prompts: Tensor, mask: Any, other: Tensor | None) -> None:
    """Raises UserError where prompts of different lengths are hidden by padding: both need the same mask."""
    full = torch.ones_like(ids) if not isinstance(mask, Tensor) or mask.ndim != 2 else mask.to(ids.device).long()
    if other is not None:
        wrong = (full != other.to(ids.device)).any(1)
    else:
        padded = full == 0
        first = padded.cumprod(1).sum(1, keepdim=True).clamp(max=ids.shape[1] - 1)
        last = ids.shape[1] - 1 - padded.flip(1).cumprod(1).sum(1, keepdim=True).clamp(max=ids.shape[1] - 1)
        wrong = (padded & (ids != prompts)).any(1)
        for pad in ids[padded].unique():  # a corrupted prompt with more padding begins or ends with a padding token
            for edge in (first, last):
                wrong |= ((prompts.gather(1, edge) == pad) & (ids.gather(1, edge) != pad)).squeeze(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"row {row}: the prompt and its corrupted prompt are padded differently, so they have not as many tokens; interchange "
            "ablation needs prompts of equal length"
        )


class _Call(NamedTuple):
    """One call of the model: its arguments by name, and the arguments as they are passed on."""

    ids: Tensor
    """Token ids [R, T], or input embeddings [R, T, D]."""
    mask: Any
    cache: Cache | None
    arguments: dict[str, Any]

    @property
    def past(self) -> int | None:
        """Number of tokens in the cache; None where it does not count them, as in recurrent models."""
        try:
            return 0 if self.cache is None else int(self.cache.get_seq_length())
        except (ValueError, AttributeError):
            return None

    def tokens(self) -> TokenRows:
        """Return positions, counted from the first token that is not padding, and rows as examples."""
        past = self.past or 0
        new, device = self.ids.shape[1], self.ids.device
        positions = self.arguments.get("position_ids")
        if isinstance(self.mask, Tensor) and self.mask.ndim == 2:
            positions = (self.mask.long().cumsum(1) - 1).clamp(min=0)[:, past : past + new]
        elif not isinstance(positions, Tensor) or positions.ndim != 2:
            positions = torch.arange(past, past + new, device=device).unsqueeze(0)
        examples = torch.arange(len(self.ids), device=device)
        return TokenRows(clean=self.ids, position_ids=positions, ids=examples, example_of_row=examples)


@dataclass
class AppliedMasks:
    """Masks on a model: a context manager that masks every call of the model and leaves it as it was."""

    frozen: FrozenModel
    masks: list[SiteMasks]
    """Effective masks of every layer, each [1, 1, n] by site."""
    ablation: Ablation
    corrupted: CorruptedPrompts | None = None
    """Corrupted prompts, for interchange ablation."""

    @classmethod
    def of(
        cls,
        frozen: FrozenModel,
        masks: Mapping[str, Tensor],
        ablation: Ablation,
        corrupted: CorruptedPrompts | None = None,
    ) -> "AppliedMasks":
        """Apply the masks of a circuit, [L, n] by granularity, each on the device of its layer."""
        layers: list[SiteMasks] = []
        for index, layer in enumerate(frozen.layers):
            device = next(layer.module.parameters()).device
            folded = site_masks(masks, index, layer.shape)
            layers.append({site: mask.to(device)[None, None] for site, mask in folded.items()})
        return cls(frozen, layers, ablation, corrupted)

    def __post_init__(self) -> None:
        self._streams = Streams(self.frozen, self.ablation)
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> "AppliedMasks":
        """Install hooks. Raises UserError within another circuit if one of them needs corrupted prompts."""
        model, paired = self.frozen.model, self.corrupted is not None
        if self._undo:
            raise UserError("this circuit is applied by the same context already; call applied() again")
        if model in _APPLIED_PAIRED or (paired and model in _APPLIED):
            raise UserError(
                "a circuit is applied to this model already, and under interchange ablation circuits cannot be applied within each "
                "other; leave the other one first"
            )
        outermost = model not in _APPLIED
        _APPLIED.add(model)
        if paired:
            _APPLIED_PAIRED.add(model)
        self._streams.__enter__()
        if paired:
            self._streams.places()
        plain, before = model.forward, model.__dict__.get("forward")
        self._signature = inspect.signature(plain)
        model.forward = wraps(plain)(partial(self._call, plain))

        def undo() -> None:
            if before is None:
                del model.forward
            else:
                model.forward = before
            self._streams.__exit__()
            _APPLIED_PAIRED.discard(model)
            if outermost:
                _APPLIED.discard(model)

        self._undo.append(undo)
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _call(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = self._read(args, kwargs)
        if not self._takes_cache(call):
            raise UserError(
                f"a cache cannot be used under {self.ablation.name} ablation in a model of this kind "
                f"({self.frozen.architecture.kind}); set use_cache to False"
            )
        if self.corrupted is None:
            with self._streams.masking(call.tokens(), self.masks.__getitem__):
                return plain(**call.arguments)
        for name in _NOT_WITH_CORRUPTED:
            if (given := call.arguments.get(name)) is not None and given is not False:
                raise UserError(
                    f"{name} cannot be used under interchange ablation, which runs two prompts; leave it out"
                )
        beside = self.corrupted.beside(call.ids, call.mask, call.cache)
        doubled = {
            name: _twice(call.arguments[name], len(call.ids), name) for name in _BY_ROW if name in call.arguments
        }
        with self._streams.masking(call.tokens(), self.masks.__getitem__, len(beside), self.corrupted.other_cache):
            return plain(**{**call.arguments, **doubled, "input_ids": torch.cat([call.ids, beside])})

    def _takes_cache(self, call: _Call) -> bool:
        if self.corrupted is not None:
            return call.cache is None or self.frozen.architecture.suffix
        return call.past is not None or not self.ablation.kind.needs_positions

    def _read(self, args: tuple, kwargs: dict[str, Any]) -> _Call:
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                bound |= bound.pop(name, {})
        ids = bound.get("input_ids")
        ids = bound.get("inputs_embeds") if ids is None else ids
        if not isinstance(ids, Tensor):
            raise UserError("a model with a circuit is called with input_ids (a tensor of token ids, [rows, tokens])")
        cache = next((value for value in bound.values() if _is_cache(value)), None)
        return _Call(ids, bound.get("attention_mask"), cache, bound)


def _is_cache(value: Any) -> bool:
    """Tell a cache by its type: its name differs between models and versions. That of xLSTM is no `Cache`."""
    return isinstance(value, Cache) or type(value).__name__.endswith("Cache")


def _twice(value: Any, rows: int, name: str) -> Any:
    """Repeat an argument with a row a prompt for the corrupted rows."""
    if isinstance(value, Mapping):
        return {key: _twice(item, rows, name) for key, item in value.items()}
    if isinstance(value, Tensor):
        place = value.ndim - 2 if name == "position_ids" else 0  # some models have several positions a token, [3, R, T]
        return torch.cat([value, value], dim=place) if value.ndim and value.shape[place] == rows else value
    if value is not None:
        raise UserError(
            f"{name} of type {type(value).__name__} cannot be used under interchange ablation; give a tensor"
        )
    return None
