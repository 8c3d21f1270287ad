"""Parse YAML text of anybody: what is no plain data of a reasonable size is refused before any of it is built."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

_MERGE, _INTEGER = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:int"
"""Tags of the key `<<`, which may stand in a mapping more than once, and of whole numbers."""
LONGEST = 1_000_000
"""Most characters of a text."""
_DEEPEST, _LARGEST, _DIGITS = 50, 100_000, 40
"""Most levels of nesting; values, those of an alias counted wherever it stands; characters of a number."""


class UnreadableYaml(ValueError):
    """The text is not valid YAML, or not plain data. The message says why."""

    def __init__(self, message: str, mark: yaml.Mark | None = None) -> None:
        super().__init__(message)
        self.line = None if mark is None else mark.line + 1
        """Line, counted from 1; None where it is not known or named in the message."""


def parse_yaml(text: str, kind: type[Any] = yaml.SafeLoader) -> Any:
    """Parse YAML text to plain data. kind: a safe loader of PyYAML. Raises UnreadableYaml.

    Refused, beside what PyYAML refuses: a key that a mapping holds twice, an anchor that holds itself, deep nesting, and text
    that aliases make large.
    """
    if len(text) > LONGEST:
        raise UnreadableYaml(f"it has more than {LONGEST:,} characters; is it a config?")
    loader = None
    try:
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Sizes().count(node, 1)
        # On the nodes as they are written: making data of them puts merged keys (`<<`) beside those that replace them.
        for key, first, second in _repeated_keys(node, "", set()):
            lines = f", in lines {first} and {second}" if first != second else f" in line {first}"
            raise UnreadableYaml(f"key {key} is given twice{lines}; remove one")
        return _unshared(loader.construct_document(node))
    except UnreadableYaml:
        raise
    except RecursionError as error:
        raise UnreadableYaml(f"it is nested more than {_DEEPEST} deep") from error
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "see the file"
        raise UnreadableYaml(f"not valid YAML ({problem})", getattr(error, "problem_mark", None)) from error
    except Exception as error:  # PyYAML raises whatever its calls raise: `!!int x`, dates that do not exist, ...
        raise UnreadableYaml(f"not valid YAML ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _unshared(value: Any) -> Any:
    """Copy a value so that what an alias repeats is no longer one object: a change of one place must not change another."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


class _Found(NamedTuple):
    size: int
    """Number of values of a node, itself included."""
    depth: int
    """Levels of its nesting, its own included."""


class _Sizes:
    """Sizes of YAML nodes, as they will be once aliases are replaced by what they stand for."""

    def __init__(self) -> None:
        self._known: dict[int, _Found | None] = {}
        """Node id -> its size; None while what is inside is counted."""

    def count(self, node: yaml.Node, level: int) -> _Found:
        """Count a node. level: of its nesting. Raises UnreadableYaml for one that holds itself, is too large or too deep."""
        if id(node) in self._known:
            found = self._known[id(node)]
            if found is None:
                raise UnreadableYaml("an anchor holds its own alias; write its content out", node.start_mark)
        else:
            if isinstance(node, yaml.ScalarNode) and node.tag == _INTEGER and len(node.value) > _DIGITS:
                raise UnreadableYaml(
                    f"a number has {len(node.value):,} digits; quote it if it is text", node.start_mark
                )
            self._known[id(node)] = None
            inner = [self.count(one, level + 1) for one in _inside(node)] if level <= _DEEPEST else []
            found = _Found(1 + sum(one.size for one in inner), 1 + max((one.depth for one in inner), default=0))
            self._known[id(node)] = found
        if level + found.depth - 1 > _DEEPEST:
            raise UnreadableYaml(f"it is nested more than {_DEEPEST} deep", node.start_mark)
        if found.size > _LARGEST:
            raise UnreadableYaml(f"aliases make it larger than {_LARGEST:,} values; write less", node.start_mark)
        return found


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    """List the nodes directly inside a node, keys and values."""
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _repeated_keys(node: yaml.Node, prefix: str, seen: set[int]) -> Iterator[tuple[str, int, int]]:
    """Find keys that a mapping at or below a YAML node holds twice: (dotted key, line of the first, line of the second).

    seen: ids of the nodes searched so far; the node of an anchor is also below each of its aliases.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            yield from _repeated_keys(entry, f"{prefix}[{index}]", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            dotted, line, name = f"{prefix}.{key.value}".lstrip("."), key.start_mark.line + 1, (key.tag, key.value)
            if name in lines and key.tag != _MERGE:
                yield dotted, lines[name], line
            lines.setdefault(name, line)
            yield from _repeated_keys(value, dotted, seen)
