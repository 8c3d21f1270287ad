"""How the files of a model hold its parameters: under other names, and experts one by one.

transformers renames tensors when it loads them, and joins those of the experts of a mixture into one parameter. Its own table of
these conversions is used, in both directions.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from torch import Tensor, nn

from bigcircuit.errors import UserError


class _Group(NamedTuple):
    """Stored tensors from which one conversion makes parameters."""

    key: str
    """Name of its first parameter."""
    converter: Any
    members: tuple[tuple[str, str], ...]
    """Stored name, and the pattern of the conversion that it has, in the order in which they are joined."""


class StoredLayout:
    """Which stored tensors each parameter is made of. Contains the names of parameters, tied ones under all of their names."""

    def __init__(self, model: Any, stored: Mapping[str, Tensor], subject: str) -> None:
        """model: on the meta device; stored: tensors of its files on the meta device; subject: names the model in messages.

        Raises UserError if a parameter is in no file.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, dot_natural_key, rename_source_key

        steps = get_model_conversion_mapping(model)
        renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        converters: list[Any] = [step for step in steps if not isinstance(step, WeightRenaming)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        state, self._model, self._subject = model.state_dict(), model, subject
        self.plain: dict[str, str] = {}
        """Stored name -> the parameter or buffer that it holds as it is; stored tensors that the model has not are in none."""
        grouped: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(stored, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
            if pattern is None:
                self.plain[name] = target
            else:
                grouped.setdefault(target, []).append((name, pattern))
        self._groups: dict[str, _Group] = {}
        for key, members in grouped.items():
            converter = by_pattern[members[0][1]]
            first, *others = converter.target_patterns
            for name in (key, *(key.replace(first, other) for other in others)):
                self._groups[name] = _Group(key, converter, tuple(members))
        self._names = self._known_names(model)

    def _known_names(self, model: Any) -> dict[str, str]:
        """Find the name under which each parameter is stored, plainly by its name in a file, else by its own."""
        plain = {target: stored for stored, target in self.plain.items()}
        same: dict[int, list[str]] = {}
        state = model.state_dict(keep_vars=True)
        for name, parameter in state.items():
            same.setdefault(id(parameter), []).append(name)
        found: dict[str, str] = {}
        for names in same.values():
            hit = next((plain.get(name, name) for name in names if name in plain or name in self._groups), None)
            if hit is None and not isinstance(state[names[0]], nn.Parameter):
                continue  # a buffer that files need not hold
            if hit is None:
                raise UserError(
                    f"{self._subject}: stores no tensor for {names[0]}; save the model once with save_pretrained of transformers"
                )
            found |= dict.fromkeys(names, hit)
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def is_converted(self) -> bool:
        """Whether some parameters are joined from several stored tensors, or otherwise converted."""
        return bool(self._groups)

    def plain_name(self, name: str) -> str | None:
        """Name of the stored tensor that is a parameter as it is; None for one that is made of several or not there."""
        stored = self._names.get(name)
        return stored if stored in self.plain else None

    def is_repeated(self, stored: str) -> bool:
        """Whether a tensor is stored once more under another name of the same parameter."""
        target = self.plain.get(stored)
        return target in self._names and self._names[target] != stored

    def members(self, name: str) -> list[str]:
        """List the stored tensors that a parameter is made of."""
        stored = self._names[name]
        return [member for member, _ in self._groups[stored].members] if stored in self._groups else [stored]

    def in_memory(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """Make a parameter. read: reads a stored tensor."""
        stored = self._names[name]
        if stored not in self._groups:
            return read(stored)
        group = self._groups[stored]
        converter = deepcopy(group.converter)
        for member, pattern in group.members:
            converter.add_tensor(group.key, member, pattern, read(member))
        made = converter.convert(group.key, model=self._model, config=self._model.config)
        value = made[stored]
        return value[0] if isinstance(value, list) else value

    def as_stored(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Divide a parameter into the tensors that the files hold of it. Raises UserError for files of another layout."""
        stored = self._names[name]
        if stored not in self._groups:
            return {stored: value}
        from transformers.core_model_loading import revert_weight_conversion

        made = revert_weight_conversion(self._model, {stored: value})
        if set(made) != set(self.members(name)):
            raise UserError(
                f"{self._subject}: its files hold {name} in a layout that transformers does not write; save the model once with "
                "save_pretrained of transformers"
            )
        return made
