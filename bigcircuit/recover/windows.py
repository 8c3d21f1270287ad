"""Windows of text: token ids of equal length, from a file or sampled from a model.

Shapes: N windows, T tokens of a window.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigcircuit.config.plain import text_problem
from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors
from bigcircuit.seeding import mix

_KEY = 0x7E87
"""Keeps the samples apart from other uses of a seed."""
_MOST_BYTES = 2**26
"""Bytes of a file of text: some fifteen million tokens."""
_AT_ONCE = 64
"""Windows that are sampled together."""


def read_windows(path: Path, field: str, tokens: int, tokenizer: Any | None) -> Tensor:
    """Read a file of text and divide it into windows, int64 [N, T]; what does not fill the last one is left out.

    field: column of a JSONL file. A document begins with the tokens that the tokenizer puts before a text. Raises UserError.
    """
    if tokenizer is None:
        raise UserError(f"recover.text {path}: the base has no tokenizer to read text with; use recover.generate")
    ids: list[int] = []
    with explain_library_errors(f"recover.text {path}: the base's tokenizer cannot read it", None, "give other text"):
        for text in _documents(path, field):
            ids += tokenizer(text)["input_ids"]
    count = len(ids) // tokens
    if count < 2:
        raise UserError(
            f"recover.text {path}: has {len(ids)} tokens, and two windows need {2 * tokens}; give more text or lower recover.tokens"
        )
    return torch.tensor(ids[: count * tokens]).view(count, tokens)


def _documents(path: Path, field: str) -> Iterator[str]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"recover.text {path}: has more than {_MOST_BYTES >> 20} MiB; give a part of it")
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"recover.text {path}: cannot be read ({error.strerror}); name a file of text") from error
    except UnicodeDecodeError as error:
        raise UserError(f"recover.text {path}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
    if path.suffix not in (".jsonl", ".ndjson"):
        yield content
        return
    # Not splitlines, which also splits at characters that a JSON text may contain.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"recover.text {path}, line {number}: not JSON ({error}); mend the line") from error
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(
                f"recover.text {path}, line {number}: has no text in {field!r}; name the column with recover.field"
            )
        if problem := text_problem(row[field]):
            raise UserError(f"recover.text {path}, line {number}: its {field!r} {problem}; mend the line")
        yield row[field]


@torch.no_grad()
def sample_windows(model: Any, count: int, tokens: int, seed: int, device: torch.device) -> Tensor:
    """Sample windows from a model at temperature 1, int64 [N, T], from its first token on. The same bits on every rank.

    Raises UserError for a model whose config names no first token.
    """
    named = (getattr(model.config, key, None) for key in ("bos_token_id", "eos_token_id"))
    start = next((ids for ids in named if isinstance(ids, int)), None)
    if start is None:
        raise UserError("recover.generate: the base's config has no bos_token_id to begin with; give recover.text")
    generator = torch.Generator().manual_seed(mix(seed, _KEY))
    found = []
    for first in range(0, count, _AT_ONCE):
        ids = torch.full((min(_AT_ONCE, count - first), 1), start)
        cache, parts = None, [ids]
        while len(parts) < tokens:
            output = model(input_ids=parts[-1].to(device), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            shares = output.logits[:, -1].float().softmax(-1).cpu()
            if not shares.isfinite().all():
                raise UserError(
                    "recover.generate: the logits of the base are not finite; give other weights or model.dtype float32"
                )
            parts.append(torch.multinomial(shares, 1, generator=generator))
        found.append(torch.cat(parts, 1))
    return torch.cat(found)


def check_ids(windows: Tensor, vocabulary: int, positions: int | None) -> None:
    """Raises UserError for token ids that the model does not have, and for windows beyond its positions."""
    if int(windows.max()) >= vocabulary:
        raise UserError(
            f"recover.text: the tokenizer makes token {int(windows.max())} and the model has {vocabulary}; give the "
            "tokenizer's model"
        )
    if positions is not None and windows.shape[1] > positions:
        raise UserError(f"recover.tokens is {windows.shape[1]} and the model has {positions} positions; lower it")
