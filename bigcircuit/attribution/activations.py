"""Activations of the full model at the tokens of the clean prompts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.experts import Added
from bigcircuit.forward.pass_state import ExpertWatcher
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import EXPERT

AtTokens = Callable[[int, str, Tensor], None]
"""Layer index, site and activations [tokens, n]."""
OfExperts = Callable[[int, Added], None]
"""Layer index, and what the experts of each token add."""


def watch_clean(
    streams: Streams,
    examples: Sequence[Example],
    micro_batches: MicroBatches,
    add: AtTokens,
    add_experts: OfExperts,
    phase: str,
) -> Tensor:
    """Run the full model on the clean prompts of this rank and pass activations to functions, without those of padding.

    Returns the number of tokens, float64 [1], of this rank; micro-batches that do not count are left out of both.
    """
    tokens = torch.zeros(1, dtype=torch.float64, device=streams.frozen.device)
    for micro_batch in micro_batches.iterate(examples, full=False, phase=phase):
        micro_batches.ranks.stop_if_requested()
        batch = micro_batch.batch
        mask = torch.ones_like(batch.clean) if batch.attention_mask is None else batch.attention_mask
        real = mask.bool() & micro_batch.is_counted

        def watch(index: int, site: str, value: Tensor, real: Tensor = real) -> None:
            add(index, site, value[real])

        def watch_experts(index: int, _site: str, values: Added, real: Tensor = real) -> None:
            add_experts(index, values.of(real.flatten()))

        streams.watch(batch, batch.clean, watch, ExpertWatcher((EXPERT,), watch_experts))
        tokens += real.sum()
    return tokens
