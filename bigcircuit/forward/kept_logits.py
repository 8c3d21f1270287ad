"""Reference logits on disk: a run that was killed goes on without computing them again.

The file is a cache: it is found by a hash of all that the logits depend on, checked by a hash of its content, and ignored if
damaged. Logits that are quick to compute are not written.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.errors import UserError
from bigcircuit.io.files import removing, reporting_disk_errors, temporary_path, tensor_sha256

SECONDS_WORTH_A_FILE = 5.0
"""Logits that were computed faster are computed again."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROWS = 256
"""Rows that ranks exchange in one message."""


class KeptLogits(NamedTuple):
    """Where a run keeps its reference logits, and what they depend on beside examples and layout."""

    folder: Path
    base: Mapping[str, str]

    def load(
        self, examples: Sequence[Example], micro_batches: MicroBatches, full: bool, positions: int
    ) -> Tensor | None:
        """Return logits [positions, V] on every rank, as rank 0 reads them; None if there are none or they are damaged.

        full: as the examples are collated.
        """
        ranks = micro_batches.ranks
        logits = _read(self._path(examples, micro_batches, full), positions) if ranks.is_first else None
        about = torch.tensor([0, 0] if logits is None else [logits.shape[1], 1 + _DTYPES.index(logits.dtype)])
        ranks.all_reduce([about])
        vocabulary, dtype = about.tolist()
        if not dtype:
            return None
        if logits is None:
            logits = torch.zeros(positions, vocabulary, dtype=_DTYPES[dtype - 1])
        for rows in logits.split(_ROWS):
            ranks.all_reduce([rows])
        return logits

    def save(
        self,
        examples: Sequence[Example],
        micro_batches: MicroBatches,
        full: bool,
        rows: Sequence[Tensor],
        seconds: float,
    ) -> None:
        """Write logits, one tensor [S, V] an example, if they took long; nothing is written where the disk is full.

        seconds: how long they took.
        """
        if seconds < SECONDS_WORTH_A_FILE or rows[0].dtype not in _DTYPES or not micro_batches.ranks.is_first:
            return
        path, logits = self._path(examples, micro_batches, full), torch.cat(list(rows))
        temporary = temporary_path(path)
        with suppress(UserError), reporting_disk_errors(path), removing(temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"logits": logits}, temporary, {"sha256": tensor_sha256(logits)})
            temporary.rename(path)

    def _path(self, examples: Sequence[Example], micro_batches: MicroBatches, full: bool) -> Path:
        known = [dict(self.base), micro_batches.max_examples, micro_batches.padding, full, [list(e) for e in examples]]
        return self.folder / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}.safetensors"


def _read(path: Path, positions: int) -> Tensor | None:
    try:
        with safe_open(path, "pt") as file:
            logits, expected = file.get_tensor("logits"), (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    is_whole = logits.shape[0] == positions and logits.dtype in _DTYPES and tensor_sha256(logits) == expected
    return logits if is_whole else None
