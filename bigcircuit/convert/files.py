"""Files of other tools: JSON, CSV, and .pt files of plain tensors, lists and numbers, parsed and written.

A .pt file is a pickle; it is opened by torch's restricted reader alone (`weights_only`), which runs no code, and only plain content
is written.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.errors import UserError, first_line
from bigcircuit.io.files import parse_json, write_bytes


class PtFile(NamedTuple):
    """Content of a .pt file."""

    content: Any


class CsvFile(NamedTuple):
    """Content of a CSV file."""

    columns: tuple[str, ...]
    rows: list[dict[str, str]]


def parse_file(path: Path) -> Any:
    """Parse a file by its content: JSON as it is, others as PtFile or CsvFile. Raises UserError for a file that cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a circuit file of another tool") from error
    # Older files of torch begin with the byte of a pickle, as the length of a safetensors header may, too.
    if content.startswith(b"PK\x03\x04") or (path.suffix in (".pt", ".pth") and content.startswith(b"\x80")):
        return PtFile(_load_pt(path))
    if path.suffix == ".csv":
        try:
            reader = csv.DictReader(io.StringIO(content.decode("utf-8")))
            return CsvFile(tuple(reader.fieldnames or ()), list(reader))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not readable as CSV ({error}); write it again as UTF-8") from error
    return parse_json(content)


def _load_pt(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and its unpickler raise many kinds
        raise UserError(
            f"{path}: holds more than tensors, lists and numbers, or is damaged ({first_line(error)[:120]}); such a pickle may run "
            "code and is not opened: write it again as the tool's own plain .pt or JSON"
        ) from error


def write_pt(path: Path, content: Any) -> None:
    """Write tensors, lists, mappings, texts and numbers as a .pt file, atomically."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a CSV file, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
