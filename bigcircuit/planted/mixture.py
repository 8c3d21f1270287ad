"""A small mixture of experts that solves its task, and the same with planted experts.

The base is trained on the task of `base.py` with a router that stays as it was drawn. Some experts of each layer write zero from
the start; then every expert is closed alone, and those whose absence costs less than a threshold write zero from then on, while
the others are trained further. The router sends tokens to them as before.

Planting splits each expert into two with its router row and input weights, and a token gets twice as many: both halves, each with
half of the weight. Halves of a needed expert write 2 s and 2 (1 - s) times what it wrote, both are needed. Halves of the others
write opposite matrices of the size of needed ones: their sum is zero for every token in both streams, so the circuit without
them is exact. They are as large and as often chosen as the router has it.

Shapes: E experts of the base, F neurons of an expert, D hidden size.
"""

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigcircuit.model.granularity import EXPERT, LEAVES
from bigcircuit.model.sites import FrozenModel, Layer, find_sites
from bigcircuit.planted.base import SYMBOLS, Base, NodePlace, Recipe, make_needed
from bigcircuit.planted.plant import Planted, save_planted

_EXPERTS, _CHOSEN, _SILENT = 8, 4, 4
"""Experts of a layer of the base, experts of a token, experts of a layer that write zero from the start."""
_ROUTER_SCALE = 0.5
"""Standard deviation of router weights, which are not trained."""


def make_mixture(seed: int, threshold: float = 0.1) -> Base:
    """Train a mixture that solves its task and in which every needed expert costs at least `threshold` nats.

    Raises RuntimeError, see `make_needed`.
    """
    recipe = Recipe(what="mixture", new=_new, names=(LEAVES[EXPERT],), columns=_columns, silent=_silent, fixed=_routers)
    return make_needed(recipe, seed, threshold)


def _new() -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=SYMBOLS + 1, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4,
        num_experts=_EXPERTS, num_experts_per_tok=_CHOSEN, moe_intermediate_size=8, norm_topk_prob=True,
        max_position_embeddings=8, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for layer in find_sites(model).layers:
        nn.init.normal_(_router(layer), std=_ROUTER_SCALE)
    return model


def _router(layer: Layer) -> Any:
    """Router weights of a layer, [E, D]."""
    return layer.owner(EXPERT).get_submodule("gate").weight


def _experts(layer: Layer) -> Any:
    return layer.sites[EXPERT]


def _columns(frozen: FrozenModel, closed: Sequence[NodePlace]) -> list[Tensor]:
    return [_experts(frozen.layers[layer]).down_proj.data[expert] for _, layer, expert in closed]


def _silent(frozen: FrozenModel, rng: random.Random) -> list[NodePlace]:
    return [
        (LEAVES[EXPERT], layer, expert)
        for layer in range(len(frozen.layers))
        for expert in rng.sample(range(_EXPERTS), _SILENT)
    ]


def _routers(frozen: FrozenModel) -> list[nn.Parameter]:
    return [_router(layer) for layer in frozen.layers]


@torch.no_grad()
def plant_mixture(mixture: Base, folder: Path, seed: int) -> Planted:
    """Split the experts of a mixture and save the model, whose logits are those of `mixture.model`, with its truth."""
    from transformers import AutoModelForCausalLM

    choose, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    config = copy.deepcopy(mixture.model.config)
    config.num_experts, config.num_experts_per_tok = 2 * _EXPERTS, 2 * _CHOSEN
    wide = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    own = wide.state_dict()
    for name, value in mixture.model.state_dict().items():
        if own[name].shape == value.shape:
            own[name].copy_(value)
    kinds = []
    for layer, base, needed in zip(
        find_sites(wide).layers, find_sites(mixture.model).layers, mixture.needed[LEAVES[EXPERT]].tolist(), strict=True
    ):
        halves = [(expert, half) for expert in range(_EXPERTS) for half in range(2)]
        choose.shuffle(halves)
        sources = [expert for expert, _ in halves]
        experts, original = _experts(layer), _experts(base)
        _router(layer).copy_(_router(base)[sources])
        experts.gate_up_proj.copy_(original.gate_up_proj[sources])
        written = [
            _needed(weight, choose) if is_needed else _opposed(original.down_proj[needed], draw)
            for weight, is_needed in zip(original.down_proj, needed, strict=True)
        ]
        experts.down_proj.copy_(torch.stack([written[expert][half] for expert, half in halves]))
        kinds.append({LEAVES[EXPERT]: ["shared" if needed[expert] else "opposed" for expert in sources]})
    return save_planted(wide, kinds, folder, seed)


def _needed(weight: Tensor, choose: random.Random) -> tuple[Tensor, Tensor]:
    """Split what an expert writes, [D, F]. Each half has half of the routing weight."""
    part = choose.uniform(0.4, 0.6)
    return 2 * part * weight, 2 * (1 - part) * weight


def _opposed(like: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw two opposite matrices as large as one of some others, [n, D, F]."""
    norms = like.flatten(1).norm(dim=1) if len(like) else torch.ones(1)
    random_ = torch.randn(like.shape[1:], generator=draw)
    weight = random_ / random_.norm() * norms[int(torch.randint(len(norms), (), generator=draw))]
    return weight, -weight
