"""Open Hugging Face data sets as pair files: folders on disk and names on the hub. No code of a data set is ever run."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from bigcircuit.config.extras import need
from bigcircuit.errors import UserError, first_line


def open_saved(path: str) -> Any:
    """Open a folder written by `save_to_disk`. Raises UserError if the folder is not one or is damaged."""
    datasets = _library(path)
    try:
        return datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is a folder that datasets cannot open ({first_line(error)[:200]}); "
            "set task.path to a pair file or to a folder saved by save_to_disk"
        ) from error


def open_hub(path: str) -> Any:
    """Open `hf://org/name[/config][:split]`. Raises UserError if the data set cannot be opened."""
    name, _, split = path.removeprefix("hf://").partition(":")
    parts = name.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise UserError(
            f"{path}: not a name on the hub; write hf://org/name, hf://org/name/config or hf://org/name:split"
        )
    datasets = _library(path)
    try:
        return datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{path}: cannot be opened ({first_line(error)[:200]}); check the name and the connection"
        ) from error


def dataset_rows(path: str, data: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield cells and place of every row. The names of several splits become the column `split`; a single split has no column."""
    parts = dict(data) if isinstance(data, dict) else {"": data}
    for name, part in parts.items():
        given = {"split": name} if len(parts) > 1 else {}
        place = f"{path} {name}".rstrip()
        for index, values in enumerate(part):
            yield {**given, **values}, f"{place} row {index}"


def _library(path: str) -> ModuleType:
    need(f"{path}: reading a data set", "data", "datasets")
    import datasets

    return datasets
