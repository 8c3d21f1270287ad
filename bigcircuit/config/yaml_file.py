"""Read a YAML config file on top of the files that it extends."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bigcircuit.config.plain import check_name, shown
from bigcircuit.config.yaml_text import LONGEST, UnreadableYaml, parse_yaml
from bigcircuit.errors import UserError

_MOST_FILES = 100
"""Files that one may extend: each may name many, which do so too."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file as nested data, on top of the files its `extends` names (relative to itself, later ones win).

    A run folder, its config.json, or sweep.json of a sweep counts as the config that it was made with, to go on in that folder.
    Raises UserError naming the file, and the line where there is one.
    """
    check_name(str(path), "--config")
    return _read(path, (), [])


def _read(path: Path, above: tuple[Path, ...], read: list[Path]) -> dict[str, Any]:
    """See read_yaml. above: the files that extend this one; read: all files read so far, each as often as it was."""
    if path.is_dir():
        path = next((record for name in _RECORDS if (record := path / name).is_file()), path / _RECORDS[0])
    if path.resolve() in above:
        raise UserError(f"{above[-1]}: extends {path}, which extends it; leave one out")
    read.append(path)
    if len(read) > _MOST_FILES:
        raise UserError(f"{path}: {above[0]} extends more than {_MOST_FILES} files, one counted as often as it is read")
    try:
        with path.open(encoding="utf-8") as file:
            raw = _parse(file.read(LONGEST + 1), path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    except UnreadableYaml as error:
        raise UserError(f"{path}{f' line {error.line}' if error.line else ''}: {error}") from error
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
        raise UserError(f"{path}: extends names a file or a list of files, not {shown(bases)}")
    merged: dict[str, Any] = {}
    for base in bases:
        check_name(base, f"{path}: extends")
        merge(merged, _read(path.parent / base, (*above, path.resolve()), read))
    merge(merged, raw)
    return merged


_RECORDS = ("config.json", "sweep.json")
"""Files in which runs and sweeps record their settings."""


def _is_record(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("config"), dict)
        and {"command", "versions"} <= content.keys()
    )


def merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Put nested settings over others; sections are merged key by key."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def _parse(text: str, path: Path) -> Any:
    """Parse YAML, or the record of a run. Raises UnreadableYaml."""
    if path.name in _RECORDS:
        with suppress(ValueError, RecursionError):
            if _is_record(found := json.loads(text)):  # of which YAML would leave 1e-05 as text
                return found
    return parse_yaml(text)
