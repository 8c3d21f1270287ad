"""Compare an export, opened in a fresh process by the loader of its format, with the masked model in memory."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigcircuit.errors import UserError
from bigcircuit.export import fresh_process
from bigcircuit.export.request import ExportRequest
from bigcircuit.forward.applied import AppliedMasks
from bigcircuit.model.sites import FrozenModel
from bigcircuit.seeding import mix

TOLERANCE = 1e-5
"""Largest difference of a logit in float32, for logits up to 1; of larger ones relative to the largest."""
_ROWS, _TOKENS, _NEW = 4, 64, 64
_KEY = 0xE4507
"""Keeps the prompts apart from other uses of a seed."""


class Prompts(NamedTuple):
    """Token ids that export and masked model are compared on."""

    ids: Tensor
    """int64 [R, T]."""
    prompt_tokens: int
    """Tokens of each prompt that are continued."""
    new_tokens: int
    """Tokens of the continuation."""


def random_prompts(hf_config: Any) -> Prompts:
    """Draw token ids, the same for every export of a model, as long as its positions allow."""
    positions = int(getattr(hf_config, "max_position_embeddings", None) or 2 * _TOKENS)
    length = min(_TOKENS, positions)
    prompt = max(min(16, positions // 2), 1)
    generator = torch.Generator().manual_seed(mix(_KEY))
    ids = torch.randint(0, hf_config.vocab_size, (_ROWS, length), generator=generator)
    return Prompts(ids, prompt, min(_NEW, positions - prompt))


def run_masked(frozen: FrozenModel, request: ExportRequest, prompts: Prompts) -> dict[str, Tensor]:
    """Run the model under the circuit that is exported on prompts: `logits` [R, T, V] and `text` [R, new tokens]."""
    with AppliedMasks.of(frozen, request.masks, request.ablation):
        return fresh_process.run_prompts(frozen.model, prompts.ids, prompts.prompt_tokens, prompts.new_tokens)


class FreshRun(NamedTuple):
    """What a fresh process is asked for, of one export."""

    loader: str
    folder: Path
    base: str
    dtype: str
    prompts: Prompts | None
    speed: dict[str, int] | None
    """Tokens of `prefill` and `decode`, and the size of the `vocabulary`; None for no measurement."""


class FreshResult(NamedTuple):
    """What the fresh process has computed."""

    outputs: dict[str, Tensor]
    """`logits` and `text`; empty without prompts."""
    speed: dict[str, dict[str, float]]
    """`exported` and `base` -> tokens per second of `prefill` and `decode`; empty without a measurement."""


def run_fresh(runs: Sequence[FreshRun]) -> list[FreshResult]:
    """Open exports in one fresh process. Raises UserError with its last line if that fails."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        jobs: list[dict[str, Any]] = []
        for number, run in enumerate(runs):
            asked = folder / f"{number}.prompts"
            if run.prompts is not None:
                save_file({"prompts": run.prompts.ids.contiguous()}, asked)
            jobs.append(
                {
                    "loader": run.loader,
                    "folder": str(run.folder.resolve()),
                    "base": run.base,
                    "dtype": run.dtype,
                    "prompts": str(asked) if run.prompts is not None else None,
                    "prompt_tokens": run.prompts.prompt_tokens if run.prompts is not None else 0,
                    "new_tokens": run.prompts.new_tokens if run.prompts is not None else 0,
                    "speed": run.speed,
                    "result": str(folder / f"{number}.result"),
                    "report": str(folder / f"{number}.report"),
                }
            )
        (folder / "jobs.json").write_text(json.dumps({"threads": torch.get_num_threads(), "jobs": jobs}))
        command = [sys.executable, fresh_process.__file__, str(folder / "jobs.json")]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        if done.returncode:
            raise UserError(
                f"{runs[0].folder}: a fresh process could not open the export ({_last_line(done.stderr)}); nothing was kept"
            )
        return [
            FreshResult(load_file(job["result"]) if job["prompts"] else {}, json.loads(Path(job["report"]).read_text()))
            for job in jobs
        ]


class Verification(NamedTuple):
    """How an export compares with the masked model."""

    largest_difference: float
    """Of logits, in float32."""
    tolerance: float
    """What it may be."""
    largest_logit: float
    same_tokens: int
    """Greedy tokens that are the same up to the first that differs, over all prompts."""
    tokens: int
    """Greedy tokens."""

    @property
    def is_equal(self) -> bool:
        """Whether the logits are equal within the tolerance."""
        return self.largest_difference <= self.tolerance


def compare_outputs(expected: dict[str, Tensor], found: dict[str, Tensor]) -> Verification:
    """Compare logits and greedy text of the masked model with those of an export."""
    largest = float(expected["logits"].abs().max())
    difference = float((expected["logits"] - found["logits"]).abs().nan_to_num(nan=float("inf")).max())
    same = (expected["text"] == found["text"]).long().cumprod(1)
    return Verification(
        largest_difference=difference,
        tolerance=TOLERANCE * max(1.0, largest),
        largest_logit=largest,
        same_tokens=int(same.sum()),
        tokens=same.numel(),
    )


def _last_line(text: str) -> str:
    """Return the last line of what a process wrote that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it ended without a message"
