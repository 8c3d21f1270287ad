"""Tell numbers of the model itself that are not finite from a training that diverged.

Shapes: S scored positions, V vocabulary, R rows of a batch, T tokens, w width of a site.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.errors import UserError
from bigcircuit.forward.experts import Added
from bigcircuit.forward.pass_state import ExpertWatcher
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import EXPERT
from bigcircuit.model.sites import FrozenModel


def check_reference(frozen: FrozenModel, logits: Tensor, micro_batch: MicroBatch) -> None:
    """Check the full model's logits [S, V] of a micro-batch. Raises UserError that names the prompt and the tensor."""
    if not logits.isfinite().all():
        bad = ~logits.isfinite().all(1)
        example = micro_batch.examples[int(micro_batch.batch.example_of_score[bad][0])]
        raise model_error(
            frozen, f"the logits of the full model are not finite on the clean prompt of {example.source}"
        )


def check_corrupted(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> None:
    """Run the full model on the corrupted prompts of examples and check its activations. Raises UserError on all ranks."""
    place = {example.id: number for number, example in enumerate(examples, start=1)}
    found = 0
    for micro_batch in micro_batches.iterate(examples, full=False):
        batch = micro_batch.batch
        bad = torch.zeros(len(batch.clean), dtype=torch.bool, device=batch.clean.device)

        def watch(_index: int, _site: str, value: Tensor, mask: Tensor | None = batch.attention_mask, bad=bad) -> None:
            """Look at activations [R, T, w] of tokens that are not padding."""
            kept = value if mask is None else value.masked_fill(~mask.bool().unsqueeze(2), 0)
            bad |= ~kept.isfinite().all(2).all(1)

        def watch_experts(index: int, site: str, found: Added, look=watch, rows: int = len(bad)) -> None:
            look(index, site, found.together().view(rows, -1, found.values.shape[-1]))

        streams.watch(batch, batch.corrupted, watch, ExpertWatcher((EXPERT,), watch_experts))
        for row in bad.nonzero().flatten().tolist():
            found = max(found, place[micro_batch.examples[int(batch.example_of_row[row])].id])
    found = micro_batches.ranks.maximum(found)
    if found:
        where = f"activations of the full model are not finite on the corrupted prompt of {examples[found - 1].source}"
        error = model_error(streams.frozen, where)
        error.on_all_ranks = True
        raise error


def model_error(frozen: FrozenModel, where: str) -> UserError:
    """Make the error that blames the model. where: what is not finite, on which prompt."""
    name = _tensor_that_is_not_finite(frozen)
    if name is not None:
        return UserError(f"{where}: {name} of the model holds NaN or infinite numbers; give other weights")
    if next(frozen.model.parameters()).dtype == torch.float16:
        return UserError(f"{where}: its numbers overflow in float16; set model.dtype to bfloat16 or float32")
    return UserError(
        f"{where}: its numbers overflow though its weights are finite; give another model or other prompts"
    )


def _tensor_that_is_not_finite(frozen: FrozenModel) -> str | None:
    """Find a parameter with NaN or infinite numbers.

    Under ZeRO-3 only this rank's pieces are searched, and layers that are streamed to a GPU are not.
    """
    for name, parameter in frozen.model.named_parameters():
        values = getattr(parameter, "ds_tensor", parameter.data)
        is_placeholder = values.dim() > 0 and not any(values.stride())
        if not is_placeholder and not values.isfinite().all():
            return name
    return None
