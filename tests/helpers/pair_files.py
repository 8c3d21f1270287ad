"""Pair files of tests."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_pairs(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write one JSON object a line; returns the path as a config takes it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
