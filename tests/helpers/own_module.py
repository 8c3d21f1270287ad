"""A module of the user, in the current folder, for tests of functions that a config names."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigcircuit.config.own_code import VARIABLE


def module_in(folder: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, text: str) -> Iterator[str]:
    """Write a module of a name that no other test has and yield the name; nothing is allowed, and the module is forgotten after."""
    name = f"{prefix}_{folder.name}"
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv(VARIABLE, raising=False)
    yield name
    sys.modules.pop(name, None)
