"""What the most needed nodes of a circuit do: where heads look on one prompt, and which tokens neurons write.

Shapes: T tokens, K neurons, D hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigcircuit.circuit.nodes import node_name
from bigcircuit.data.pair import Example
from bigcircuit.data.shown_tokens import token_texts
from bigcircuit.model.sites import FrozenModel, in_features
from bigcircuit.results.evaluation import Minimality

_HEADS, _NEURONS, _TOKENS, _LONGEST = 6, 8, 6, 64
"""Heads and neurons that are shown, tokens of each neuron, and the longest prompt."""


@torch.no_grad()
def look_inside(
    frozen: FrozenModel, minimality: Mapping[str, Minimality], examples: Sequence[Example], tokenizer: Any
) -> dict[str, Any]:
    """Describe the most needed heads and MLP neurons for a page, in the full model; empty where none was closed by itself.

    Returns `tokens`, those of a prompt; `heads`, each with its attention from the last token to every one; and `neurons`, each with
    the tokens whose logits its output raises and lowers most by the unembedding alone. Weights that are divided over ranks or that
    flow from files are left alone: then nothing is returned.
    """
    if frozen.engine is not None or any(parameter.is_meta for parameter in frozen.model.parameters()):
        return {}
    needed = {name: _most_needed(minimality.get(name)) for name in ("head", "mlp_neuron")}
    example = next((one for one in examples if len(one.clean) <= _LONGEST), None)
    weights = _attention(frozen, example) if needed["head"] and example is not None else []
    heads = [
        {"name": node_name("head", layer, head, 1), "weights": [round(weight, 4) for weight in found[head].tolist()]}
        for layer, head in needed["head"][:_HEADS]
        if weights and (found := weights[layer]) is not None
    ]
    tokens = token_texts(tokenizer, (), example.clean) if heads and example is not None else []
    return {"tokens": tokens, "heads": heads, "neurons": _written(frozen, needed["mlp_neuron"][:_NEURONS], tokenizer)}


def _most_needed(found: Minimality | None) -> list[tuple[int, int]]:
    """List (layer, number) of the needed nodes that were closed by themselves, most needed first."""
    if found is None or found.group > 1:
        return []
    return [(one.layer, one.nodes[0]) for one in found.dropped if one.necessary]


def _attention(frozen: FrozenModel, example: Example) -> list[Tensor | None]:
    """Compute the attention of the last token of the clean prompt by layer, [heads, T]; None for layers without attention weights.

    The eager implementation alone returns weights; the model's own is put back.
    """
    model, before = frozen.model, frozen.model.config._attn_implementation
    ids = torch.tensor([example.clean], device=frozen.device)
    try:
        model.set_attn_implementation("eager")
        found = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    return [None if one is None else one[0, :, -1].float().cpu() for one in found or ()]


def _written(frozen: FrozenModel, neurons: Sequence[tuple[int, int]], tokenizer: Any) -> list[dict[str, Any]]:
    """Project what each MLP neuron writes on the unembedding."""
    rows = []
    for layer, number in neurons:
        direction = _response(frozen.layers[layer].mlp, number)
        logits = (frozen.head(direction) - frozen.head(torch.zeros_like(direction)))[0].float()
        best, worst = (logits.topk(_TOKENS, largest=largest).indices.tolist() for largest in (True, False))
        name = node_name("mlp_neuron", layer, number, 1)
        raised, lowered = ([token_texts(tokenizer, (), (token,))[0] for token in ids] for ids in (best, worst))
        rows.append({"name": name, "raises": raised, "lowers": lowered})
    return rows


def _response(projection: nn.Module, number: int) -> Tensor:
    """Return what a projection writes for one unit of a neuron, [1, D]: a column of its weight, with an adapter if it has one."""
    like = next(projection.parameters())
    unit = torch.zeros(1, in_features(projection), dtype=like.dtype, device=like.device)
    silent = projection(unit)
    unit[0, number] = 1
    return projection(unit) - silent
