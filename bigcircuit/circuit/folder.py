"""Circuit files in a folder: of a run, or one that `save_pretrained` wrote."""

from pathlib import Path

from bigcircuit.errors import UserError

CIRCUIT_FILE = "circuit.safetensors"


def circuit_files(folder: Path) -> list[Path]:
    """List the circuit files of a finished run in the order of its members. Raises UserError if there are none."""
    alone = folder / CIRCUIT_FILE
    files = [alone] if alone.exists() else sorted((folder / "circuits").glob("*.safetensors"), key=_order)
    if not files:
        raise UserError(f"{folder}: has no circuit yet; finish the run first (the same command goes on)")
    return files


def circuit_file(path: str | Path, member: int | None = None) -> Path:
    """Return the circuit file that a path means: the file itself, or that of a folder; `~` is the home folder.

    member: which circuit of a run with several. Raises UserError where that is not clear.
    """
    found = Path(path).expanduser()
    if not found.is_dir():
        return found
    files = circuit_files(found)
    if member is None and len(files) > 1:
        raise UserError(f"{path}: has {len(files)} circuits; name one, such as {files[0]}, or give member=0")
    if member is not None and not -len(files) <= member < len(files):
        raise UserError(f"{path}: has {len(files)} circuit(s), and member is {member}; count from 0")
    return files[member or 0]


def _order(path: Path) -> tuple[int, str]:
    return (int(path.stem), "") if path.stem.isdigit() else (1 << 30, path.stem)
