"""Texts that the full model writes itself: a corpus where none is at hand, and the one that its weights were fitted to."""

from typing import Any

import torch

from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import TokenIds
from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors
from bigcircuit.model.sites import FrozenModel
from bigcircuit.seeding import mix

_AT_ONCE = 64
"""Documents of a batch; others have other samples, so it is no setting."""
_SAMPLES_KEY = 0x7E87
"""Keeps the seeds of samples apart from other uses of the seed."""


@torch.no_grad()
def sample_documents(
    frozen: FrozenModel, start: int, count: int, length: int, seed: int, micro_batches: MicroBatches
) -> list[TokenIds]:
    """Sample documents of up to `length` tokens at temperature 1, from the token `start` on, up to and with an end token.

    Every rank writes all of them with the same seeds, because ranks that share weights must make the same passes. Raises
    UserError for a model that cannot generate.
    """
    if not hasattr(frozen.model, "generate"):
        raise UserError(
            "task.text.generate is set but the language part of this model cannot generate; set task.path to a corpus"
        )
    ends, documents = _end_tokens(frozen.model), list[TokenIds]()
    sizes = [min(_AT_ONCE, count - first) for first in range(0, count, _AT_ONCE)]
    devices = [frozen.device] if frozen.device.type == "cuda" else []
    with micro_batches.progress.phase("sampling text", len(sizes), "batches") as batches:
        for number, size in enumerate(sizes):
            micro_batches.ranks.stop_if_requested()
            prompt = torch.full((size, 1), start, dtype=torch.long, device=frozen.device)
            cannot = explain_library_errors(
                "task.text.generate: the model cannot write samples",
                None,
                "give other weights, or a corpus as task.path",
            )
            with torch.random.fork_rng(devices), cannot:
                torch.manual_seed(mix(seed, _SAMPLES_KEY, number))
                rows = frozen.model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    repetition_penalty=1.0,  # these two are what generation_config.json of a checkpoint often sets
                    no_repeat_ngram_size=0,
                    max_length=length,
                    pad_token_id=start,
                )
            documents += [_up_to_end(tuple(row), ends) for row in rows.tolist()]
            batches.advance()
    return documents


def _end_tokens(model: Any) -> set[int]:
    end = model.generation_config.eos_token_id
    return set(end) if isinstance(end, list) else set() if end is None else {end}


def _up_to_end(ids: TokenIds, ends: set[int]) -> TokenIds:
    """Cut a document behind its first end token; the first token, which may be one, starts it."""
    end = next((place for place, token in enumerate(ids[1:], 2) if token in ends), len(ids))
    return ids[:end]
