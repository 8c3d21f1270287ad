"""Hashes of large files that this machine has taken before, so that a model is read for its hash once.

A file is known by device, inode, size and both of its times. The time of change (ctime) moves with every write and cannot be set,
so a file that was edited, replaced or put back is hashed again.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from bigcircuit.errors import UserError
from bigcircuit.io.files import write_json

_SMALLEST = 1 << 26
"""Bytes of a file that is worth it."""
_SETTLED = 2.0
"""Seconds since a file was changed after which its times tell one more change apart."""
_MOST = 4096
"""Files that are remembered."""


def known_hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """Look up sha256 of files that are as they were when they were hashed; small files and others are missing."""
    before = _read()
    found = {path: before.get(_key(path)) for path in paths}
    return {path: digest for path, digest in found.items() if isinstance(digest, str)}


def remember_hashes(hashes: Mapping[Path, str]) -> None:
    """Store sha256 of large files that were hashed now; nothing is stored where the cache cannot be written."""
    new = {_key(path): digest for path, digest in hashes.items() if _lasts(path)}
    if not new:
        return
    stored = {key: value for key, value in _read().items() if key not in new} | new
    with suppress(OSError, UserError):
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(list(stored.items())[-_MOST:]))


def cache_file() -> Path:
    """Return the file of known hashes: `bigcircuit/sha256.json` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bigcircuit" / "sha256.json"


def _read() -> dict[str, object]:
    with suppress(OSError, ValueError):
        found = json.loads(cache_file().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _key(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _lasts(path: Path) -> bool:
    found = path.stat()
    return found.st_size >= _SMALLEST and time.time() - found.st_ctime > _SETTLED
