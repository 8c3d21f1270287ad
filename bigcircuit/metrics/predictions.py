"""Predictions of the full model, each circuit and each complement on a few held-out prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.data.collate import collate
from bigcircuit.data.dataset import TaskData
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example, Pair
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.distinct_circuits import mask_source

_EXAMPLES, _TOP = 12, 3
_AT_ONCE = 8
"""Circuits and complements of one pass, which runs whole prompts: a large population must not run out of memory at its end."""


@torch.no_grad()
def example_predictions(
    streams: Streams,
    circuits: Sequence[Mapping[str, Tensor]],
    ablation: Ablation,
    data: TaskData,
    tokenizer: Any,
    micro_batches: MicroBatches,
) -> dict[str, Any]:
    """Make the content of examples.json.

    ablation: with constants, if any, of one row per circuit. Every rank makes all passes: they are few,
    and ranks that share weights must make the same passes. For each circuit and prompt: `prompt`, `corrupted`, `answers` (only
    their first tokens are predicted), and for `full`, `circuit` and `complement` the likeliest next tokens as {token,
    probability, right}.
    """
    chosen, size = data.splits["test"][:_EXAMPLES], micro_batches.max_examples
    if chosen[0].is_window:
        return {"members": [[] for _ in circuits]}
    pieces = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    both = [part for masks in circuits for part in (masks, {name: ~mask for name, mask in masks.items()})]
    members: list[list[dict[str, Any]]] = [[] for _ in circuits]
    with micro_batches.progress.phase("example predictions", len(pieces)) as passes:
        for piece in pieces:
            for example, (full, *best) in zip(piece, _likeliest(streams, both, ablation, piece), strict=True):
                for index, rows in enumerate(members):
                    columns = (full, *best[2 * index : 2 * index + 2])
                    rows.append(_row(example, data.pairs[example.id], columns, tokenizer))
            passes.advance()
    return {"members": members}


def _likeliest(
    streams: Streams, masks: Sequence[Mapping[str, Tensor]], ablation: Ablation, piece: Sequence[Example]
) -> list[list[list[tuple[int, float]]]]:
    """Find the likeliest first tokens with their probabilities, by example, then by full model and masks.

    masks: of each circuit and its complement in turn.
    """
    batch = collate(piece, full=False).to(streams.frozen.device)
    owners = batch.example_of_score.tolist()
    first = [owners.index(index) for index in range(len(piece))]
    logits = [streams.reference(batch)[None, first]]
    for start in range(0, len(masks), _AT_ONCE):
        chosen = masks[start : start + _AT_ONCE]
        with streams.under(ablation.of([(start + index) // 2 for index in range(len(chosen))])):
            logits.append(streams.masked(batch, mask_source(chosen, streams), len(chosen))[:, first])
    found = torch.cat(logits).float().softmax(-1).topk(min(_TOP, logits[0].shape[-1]))
    ids, shares = found.indices.transpose(0, 1).tolist(), found.values.transpose(0, 1).tolist()
    return [
        [list(zip(*column, strict=True)) for column in zip(*one, strict=True)] for one in zip(ids, shares, strict=True)
    ]


def _row(example: Example, pair: Pair, best: Sequence[Sequence[tuple[int, float]]], tokenizer: Any) -> dict[str, Any]:
    right = {answer[0] for answer in example.answers}

    def shown(token: int) -> str:
        if tokenizer is None:
            return str(token)
        # A token by itself may lose its space, so it is what it adds to the prompt.
        before, after = (tokenizer.decode(ids) for ids in (example.clean, (*example.clean, token)))
        return after.removeprefix(before) if after.startswith(before) else tokenizer.decode([token])

    def text(value: Any) -> str:
        return value if isinstance(value, str) else " ".join(map(str, value))

    columns = {
        name: [{"token": shown(t), "probability": round(p, 6), "right": t in right} for t, p in tokens]
        for name, tokens in zip(("full", "circuit", "complement"), best, strict=True)
    }
    return {
        "prompt": text(pair.clean),
        "corrupted": text(pair.corrupted),
        "answers": [text(answer) for answer in pair.answers],
        "wrong_answers": [text(answer) for answer in pair.wrong_answers],
        **columns,
    }
