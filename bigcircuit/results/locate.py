"""Find the circuit files of a run, the run of a circuit file, and short names for both."""

from collections.abc import Container, Iterable
from itertools import chain, count
from pathlib import Path

from bigcircuit.circuit.folder import circuit_files as circuit_files
from bigcircuit.errors import UserError


def run_of(path: Path) -> Path | None:
    """Find the run folder that holds a circuit file; None if there is none."""
    return next((folder for folder in (path.parent, path.parent.parent) if (folder / "config.json").is_file()), None)


def name_of(folder: Path | None, file: Path) -> str:
    """Make a short name of a circuit from its run folder, with the member where there are several; without a run from its file."""
    if folder is None:
        return file.stem
    run = folder.resolve().name
    return run if file.stem == "circuit" else f"{run}/{file.stem}"


def unique(label: str, taken: Container[str]) -> str:
    """Return the label, or the first of label-2, label-3, ... that is not taken."""
    return next(name for name in chain([label], (f"{label}-{n}" for n in count(2))) if name not in taken)


def check_named_once(files: Iterable[Path]) -> None:
    """Raise UserError for a file that is named twice, also by its folder: beside itself a circuit would look confirmed."""
    seen: set[Path] = set()
    for file in files:
        if (real := file.resolve()) in seen:
            raise UserError(f"{file}: is named twice; name each circuit once")
        seen.add(real)
