"""Read a YAML config file on top of the files that it extends; a key that is given twice is refused."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from bigcircuit.config.values import UNREADABLE
from bigcircuit.errors import UserError

_MERGE = "tag:yaml.org,2002:merge"
"""Tag of the key `<<`, which may stand in a mapping more than once."""


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file as nested data, on top of the files its `extends` names (relative to itself, later ones win).

    A run folder, its config.json, or sweep.json of a sweep counts as the config that it was made with, to go on in that folder.
    above: the files that extend this one. Raises UserError naming the file, and the line where there is one.
    """
    if path.is_dir():
        path = next((file for name in _RECORDS if (file := path / name).is_file()), path / _RECORDS[0])
    if path.resolve() in above:
        raise UserError(f"{above[-1]}: extends {path}, which extends it; leave one out")
    try:
        raw = _parse(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{where}: not valid YAML ({getattr(error, 'problem', None) or 'see the file'})"
        ) from error
    if raw is None:
        raise UserError(f"{path}: the config file is empty; see configs/quickstart.yaml for an example")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a config is a mapping of sections, not a {type(raw).__name__}")
    if path.name in _RECORDS and _is_record(raw):
        sweep = {"sweep": raw["sweep"]} if "sweep" in raw else {}
        return {**raw["config"], "output": str(path.parent), **sweep}
    bases = raw.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: extends names a file or a list of files, not {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        _merge(merged, read_yaml(path.parent / base, (*above, path.resolve())))
    _merge(merged, raw)
    return merged


_RECORDS = ("config.json", "sweep.json")
"""Files in which runs and sweeps record their settings."""


def _is_record(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("config"), dict)
        and {"command", "versions"} <= content.keys()
    )


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _parse(text: str, path: Path) -> Any:
    """Parse YAML. Raises UserError for a key that one mapping holds twice, and YAMLError."""
    if path.name in _RECORDS:
        with suppress(ValueError, RecursionError):
            if _is_record(found := json.loads(text)):  # of which YAML would leave 1e-05 as text
                return found
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # On the nodes as they are written: making data of them puts merged keys (`<<`) beside those that replace them.
        for key, first, second in _repeated_keys(node, "", set()):
            lines = f", in lines {first} and {second}" if first != second else f" in line {first}"
            raise UserError(f"{path}: key {key} is given twice{lines}; remove one")
        return loader.construct_document(node)
    except (UserError, yaml.YAMLError):
        raise
    except UNREADABLE as error:
        raise UserError(f"{path}: not valid YAML ({error})") from error
    finally:
        loader.dispose()


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
