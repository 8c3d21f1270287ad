"""Prune a model with one other tool: `python text_peers_prune.py TOOL MODEL CORPUS SHARE ...`, run by the tool's own Python.

See `text_peers.py`. CORPUS has rows of token ids with their split. Prints one line of JSON: `version`, `full` and, by method and
share, the parameters of the layers that were removed and the summed cross entropy of every held-out window.
"""

import copy
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

BATCH = 8
"""Windows of a batch; all of one length, because the tools' statistics count padding."""


def read_windows(path: Path, split: str) -> list[list[int]]:
    """Read the token ids of a split."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["text"] for row in rows if row["split"] == split]


def batches(windows: Sequence[Sequence[int]], size: int = BATCH) -> list[tuple[list[int], Tensor]]:
    """Group windows of equal length; yields their places and token ids [B, T]."""
    by_length: dict[int, list[int]] = {}
    for place, window in enumerate(windows):
        by_length.setdefault(len(window), []).append(place)
    parts = [places[i : i + size] for places in by_length.values() for i in range(0, len(places), size)]
    return [(part, torch.tensor([windows[place] for place in part])) for part in parts]


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross entropy of each token but the first, [B, T - 1]."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@torch.no_grad()
def held_out(model: nn.Module, windows: Sequence[Sequence[int]]) -> list[float]:
    """Sum the cross entropy of every window."""
    found = [0.0] * len(windows)
    for places, ids in batches(windows, 32):
        for place, value in zip(places, losses(model.eval(), ids).double().sum(1).tolist(), strict=True):
            found[place] = value
    return found


def load(path: str) -> Any:
    """Load the model in float32; transformers 4 and 5 have other words for it."""
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").float().eval()


def size(model: Any) -> int:
    """Count the parameters of the layers; copies of one key/value head (see `expanded`) once, as long as one is left."""
    total = sum(parameter.numel() for parameter in model.model.layers.parameters())
    for layer in model.model.layers:
        attention = layer.self_attn
        if (groups := getattr(attention, "group_of_head", None)) is not None:
            for projection in (attention.k_proj, attention.v_proj):
                heads = projection.out_features // attention.head_dim
                total -= projection.weight.numel() // heads * (heads - len(groups))
    return total


# optipfair


def optipfair(path: str, train: Sequence[Sequence[int]]) -> Iterator[tuple[str, Callable[[float], Any]]]:
    """Yield the ways in which optipfair prunes: a function of the share of parameters that are to be removed at most."""
    import optipfair as opf

    data = _Loader([{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for _, ids in batches(train)])

    def narrow(model: Any, least: float, method: str, loader: Any = None) -> Any:
        """Remove as many neurons from every MLP as leave `least` parameters."""
        mlp = model.model.layers[0].mlp.gate_proj
        one = 3 * mlp.in_features * len(model.model.layers)
        neurons = min(int((size(model) - least) // one), mlp.out_features - 1)
        if neurons <= 0:
            return model
        percentage = (neurons + 1e-6) / mlp.out_features * 100
        return opf.prune_model(
            model=model,
            pruning_type="MLP_GLU",
            neuron_selection_method=method,
            pruning_percentage=percentage,
            dataloader=loader,
            show_progress=False,
        )

    def shorten(model: Any, least: float, *, by_importance: bool) -> Any:
        """Remove as many layers as leave `least` parameters: the last ones, or those that turn the hidden state least."""
        layers = model.model.layers
        count = int((size(model) - least) // (size(model) / len(layers)))
        if not count:
            return model
        chosen: dict[str, Any] = {"num_layers_to_remove": count, "layer_selection_method": "last"}
        if by_importance:
            importance = opf.analyze_layer_importance(model, data, show_progress=False)
            chosen = {"layer_indices": sorted(sorted(importance, key=lambda index: importance[index])[:count])}
        return opf.prune_model(model=model, pruning_type="DEPTH", show_progress=False, **chosen)

    def least(share: float) -> tuple[Any, float]:
        model = load(path)
        return model, size(model) * (1 - share) - 0.5

    for method in ("MAW", "VOW", "PON", "L2"):
        yield f"MLP width, {method}", lambda share, method=method: narrow(*least(share), method)
    yield "MLP width, MAW with calibration data", lambda share: narrow(*least(share), "MAW", data)
    yield "depth, last layers", lambda share: shorten(*least(share), by_importance=False)
    yield "depth, by layer importance", lambda share: shorten(*least(share), by_importance=True)

    def both(share: float) -> Any:
        model, most = least(share)
        return narrow(shorten(model, most, by_importance=True), most, "MAW", data)

    yield "depth by layer importance, then MLP width, MAW with calibration data", both


class _Loader(list):
    """Batches with a length, as a DataLoader has."""


# torch-pruning


def expanded(model: Any) -> Any:
    """Give every query head a copy of its key/value head: torch-pruning 1.6.1 does not follow grouped heads through rotations.

    The function that the model computes stays the same; `size` counts the copies once.
    """
    config = model.config
    repeat = config.num_attention_heads // config.num_key_value_heads
    for layer in model.model.layers:
        attention = layer.self_attn
        for name in ("k_proj", "v_proj"):
            old = getattr(attention, name)
            rows = old.weight.detach().unflatten(0, (-1, attention.head_dim)).repeat_interleave(repeat, 0).flatten(0, 1)
            new = nn.Linear(old.in_features, len(rows), bias=False)
            new.weight.data.copy_(rows)
            setattr(attention, name, new)
        attention.num_key_value_groups, attention.num_key_value_heads = 1, config.num_attention_heads
        attention.group_of_head = list(range(config.num_key_value_heads))
    config.num_key_value_heads = config.num_attention_heads
    return model


def torch_pruning(path: str, train: Sequence[Sequence[int]]) -> Iterator[tuple[str, Callable[[float], Any]]]:
    """Yield the ways in which torch-pruning prunes: the scopes and importances of its example for language models."""
    import torch_pruning as tp

    base = expanded(load(path))
    found = _statistics(base, train, tp)
    ratios: dict[tuple[str, float], float] = {}

    def prune(importance: str, ratio: float, *, everywhere: bool, hidden: bool) -> Any:
        model, score = copy.deepcopy((base, found[importance]))
        for own, of in zip(model.parameters(), base.parameters(), strict=True):
            own.grad = None if of.grad is None else of.grad.clone()
        attentions, mlps = ([getattr(layer, name) for layer in model.model.layers] for name in ("self_attn", "mlp"))
        gates = [mlp.gate_proj for mlp in mlps]
        own_ratios = {} if hidden else {tuple(gates): ratio} if everywhere else dict.fromkeys(gates, ratio)
        pruner = tp.pruner.BasePruner(
            model,
            example_inputs=torch.arange(5).unsqueeze(0),
            output_transform=lambda output: output.logits,
            importance=score,
            global_pruning=everywhere,
            pruning_ratio=ratio if hidden else 0.0,
            pruning_ratio_dict=own_ratios,
            ignored_layers=[model.lm_head],
            num_heads={
                projection: model.config.num_attention_heads
                for one in attentions
                for projection in (one.q_proj, one.k_proj, one.v_proj)
            },
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=ratio,
        )
        names = {id(module): index for index, one in enumerate(attentions) for module in (one.o_proj,)}
        gone: dict[int, set[int]] = {}
        for group in pruner.step(interactive=True):
            for dependency, indices in group:
                index = names.get(id(dependency.target.module))
                if index is not None and dependency.handler == tp.prune_linear_in_channels:
                    gone[index] = {place // attentions[index].head_dim for place in indices}
            group.prune()
        repeat = model.config.num_attention_heads // len(base.model.layers[0].self_attn.group_of_head)
        for index, one in enumerate(attentions):
            heads = set(range(model.config.num_attention_heads)) - gone.get(index, set())
            one.group_of_head = sorted({head // repeat for head in heads})
            one.num_heads = one.num_key_value_heads = one.q_proj.out_features // one.head_dim
        return model

    def nearest(share: float, key: str, make: Callable[[float], Any]) -> Any:
        """Search the ratio, in steps of .01, that removes most parameters, but at most the share."""
        least, best = size(base) * (1 - share) - 0.5, base
        known = ratios.get((key, share))
        low, high = (0, 90) if known is None else (round(known * 100) - 1, round(known * 100))
        while low < high:
            middle = (low + high + 1) // 2
            model = make(middle / 100)
            if size(model) < least:
                high = middle - 1
            else:
                low, best = middle, model
                ratios[key, share] = middle / 100
        return best

    for scope, everywhere, hidden in (
        ("heads, MLP and hidden size, as in its example", False, True),
        ("heads, MLP and hidden size, global", True, True),
        ("heads and MLP", False, False),
        ("heads and MLP, global", True, False),
    ):
        for importance in found:
            make = partial(prune, importance, everywhere=everywhere, hidden=hidden)
            key = f"{scope}, {importance}" if everywhere else scope
            yield f"{scope}: {importance}", partial(nearest, key=key, make=make)


def _statistics(base: Any, train: Sequence[Sequence[int]], tp: Any) -> dict[str, Any]:
    """Compute importances on the training windows; gradients stay in the model."""
    hessian, activation = tp.importance.GroupHessianImportance(), tp.importance.ActivationImportance(p=2)
    rows = max((ids for _, ids in batches(train, len(train))), key=len)  # it keeps what it saw last
    with torch.no_grad(), activation.compute_importance(base):
        base(input_ids=rows, use_cache=False)
    hessian.zero_grad()
    for window in train:
        base.zero_grad()
        losses(base, torch.tensor([window])).mean().backward()
        hessian.accumulate_grad(base)
    base.zero_grad()
    for _, ids in batches(train):
        (losses(base, ids).mean() * len(ids) / len(train)).backward()
    magnitude, taylor = tp.importance.GroupMagnitudeImportance(p=2), tp.importance.GroupTaylorImportance()
    return {"magnitude": magnitude, "Taylor": taylor, "Hessian": hessian, "activation": activation}


TOOLS = {"optipfair": optipfair, "torch-pruning": torch_pruning}


def main() -> None:
    """Prune by all methods and score the held-out windows."""
    tool, path, corpus = sys.argv[1:4]
    shares = [float(word) for word in sys.argv[4:]]
    train, test = (read_windows(Path(corpus), split) for split in ("train", "test"))
    model = load(path)
    found: dict[str, Any] = {"version": importlib.metadata.version(tool), "full": held_out(model, test), "methods": []}
    for name, prune in TOOLS[tool](path, train):
        for share in shares:
            try:
                pruned = prune(share)
                whole = size(expanded(load(path)) if tool == "torch-pruning" else load(path))
                row = {"removed": 1 - size(pruned) / whole, "losses": held_out(pruned, test)}
            except Exception as error:  # of a tool: part of the result
                row = {"error": f"{type(error).__name__}: {error}"[:200]}
            found["methods"].append({"method": name, "share": share, **row})
            sys.stderr.write(f"{name} {share:g}: {row.get('removed', row.get('error'))}\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
