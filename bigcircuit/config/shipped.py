"""Configs and launchers that come with the package, found by name: in a wheel inside it, in a checkout beside it."""

from pathlib import Path

from bigcircuit.errors import UserError

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "shipped", _PACKAGE.parent)
PRESETS, DEEPSPEED = "configs/presets", "configs/deepspeed"


def shipped_names(folder: str, suffix: str) -> list[str]:
    """List the files of a folder that come with the package, without their suffix."""
    return sorted({path.stem for place in _PLACES for path in (place / folder).glob(f"*{suffix}")})


def shipped_file(folder: str, name: str, suffix: str) -> Path | None:
    """Return a file that comes with the package; None if there is none of this name."""
    if name not in shipped_names(folder, suffix):
        return None
    return next(path for place in _PLACES if (path := place / folder / f"{name}{suffix}").is_file())


def preset_file(name: str) -> Path:
    """Return the file of a preset. Raises UserError, with the names of all, if there is none of this name."""
    found = shipped_file(PRESETS, name, ".yaml")
    if found is None:
        raise UserError(f"--preset {name}: not a preset; use any of {', '.join(shipped_names(PRESETS, '.yaml'))}")
    return found


def shipped_root() -> Path:
    """Return the folder with `configs` and `launchers`."""
    return next((place for place in _PLACES if (place / "configs").is_dir()), _PLACES[0])
