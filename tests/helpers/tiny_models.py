"""Tiny random models of every listed architecture, with examples and masks for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bigcircuit.data.pair import Example
from bigcircuit.model.granularity import ATTENTION, EXPERT_NEURON, MLP, MLP_OUTPUT, SITE_WIDTH
from bigcircuit.model.sites import FrozenModel, find_sites

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
"""Settings of a model of three layers, in the names that most architectures use."""
DENSE_SITES = (ATTENTION, MLP, MLP_OUTPUT)
"""The sites of a dense model."""
GPT2_NAMES = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 64}
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FALCON = {k: v for k, v in TINY.items() if k not in ("head_dim", "num_key_value_heads")} | {
    "ffn_hidden_size": 48,
    "alibi": False,
}
BLOOM = {"vocab_size": 96, "hidden_size": 32, "n_layer": 3, "n_head": 4, **TOKEN_IDS}
MPT = {
    "vocab_size": 96,
    "d_model": 32,
    "n_layers": 3,
    "n_heads": 4,
    "expansion_ratio": 2,
    "max_seq_len": 64,
    **TOKEN_IDS,
}
MULTI_HEAD = {**TINY, "num_key_value_heads": 4}
_USUAL = """
    cohere cohere2 exaone4 gemma glm helium llama ministral nemotron olmo olmo2 olmo3 phi phi3 qwen3 seed_oss starcoder2
"""
TINY_CONFIGS: dict[str, list[dict[str, Any]]] = {name: [TINY] for name in _USUAL.split()} | {
    "gpt2": [{**GPT2_NAMES, **TOKEN_IDS}],
    "gptj": [{**GPT2_NAMES, **TOKEN_IDS, "rotary_dim": 4}],
    "gpt_neo": [
        {
            **TOKEN_IDS,
            "vocab_size": 96,
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 4,
        }
    ],
    "gpt_neox": [{**MULTI_HEAD, "use_parallel_residual": True}, {**MULTI_HEAD, "use_parallel_residual": False}],
    "opt": [{**MULTI_HEAD, "ffn_dim": 48, "word_embed_proj_dim": 32}],
    "falcon": [
        {**FALCON, "multi_query": True},
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        {**FALCON, "multi_query": False, "parallel_attn": False},
        {**FALCON, "multi_query": False, "parallel_attn": False, "alibi": True},
    ],
    "gemma2": [{**TINY, "sliding_window": 4, "query_pre_attn_scalar": 8}],
    "gemma3_text": [{**TINY, "sliding_window": 4, "query_pre_attn_scalar": 8}],
    "granite": [{**TINY, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.3}],
    "mistral": [{**TINY, "sliding_window": 4}],
    "qwen2": [TINY, {**TINY, "tie_word_embeddings": True}],
    "smollm3": [{**TINY, "no_rope_layers": [1, 0, 1]}],
    "stablelm": [TINY, {**TINY, "use_parallel_residual": True}],
}
"""Dense model type -> settings of each variant of the architecture that computes something else."""

TINY_CASES = [
    pytest.param(name, settings, id=f"{name}-{i}")
    for name, all_ in sorted(TINY_CONFIGS.items())
    for i, settings in enumerate(all_)
]
"""Each of these as the parameters `name, settings` of a test."""


def tiny_model(name: str, settings: dict[str, Any]) -> FrozenModel:
    """Build a frozen random model, always the same for the same settings."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **settings)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return find_sites(model)


def tiny_examples(count: int = 3) -> list[Example]:
    """Make pairs of several lengths that differ in the middle, so that the scored positions hold equal tokens."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        length = 7 + 2 * index
        clean = torch.randint(3, 96, (length,), generator=generator).tolist()
        corrupted = list(clean)
        corrupted[1:4] = [3 + (token + 7) % 90 for token in clean[1:4]]
        made.append(
            Example(
                id=index,
                clean=tuple(clean),
                corrupted=tuple(corrupted),
                answers=((5, 6),),
                wrong_answers=((7,),),
                source=f"row {index}",
            )
        )
    return made


def uneven_examples() -> list[Example]:
    """Make pairs of 7 to 12 tokens that share their first 4 to 9 tokens, with answers of one to three tokens."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, (length, shared, answer) in enumerate([(9, 6, 1), (12, 9, 3), (7, 4, 2), (9, 8, 1)]):
        clean, right, wrong = (
            tuple(torch.randint(3, 96, (count,), generator=generator).tolist()) for count in (length, answer, answer)
        )
        corrupted = (*clean[:shared], *(3 + (token + 7) % 90 for token in clean[shared:]))
        made.append(
            Example(id=number, clean=clean, corrupted=corrupted, answers=(right,), wrong_answers=(wrong,), source="")
        )
    return made


def long_examples() -> list[Example]:
    """Make eight pairs of 14 to 16 tokens that differ in the fifth alone, with answers of one token."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(8):
        clean = tuple(torch.randint(3, 90, (14 + number % 3,), generator=generator).tolist())
        corrupted = (*clean[:4], clean[4] + 1, *clean[5:])
        made.append(
            Example(id=number, clean=clean, corrupted=corrupted, answers=((5,),), wrong_answers=((6,),), source="")
        )
    return made


def constant_masks(frozen: FrozenModel, value: float, members: int = 1) -> Callable[[int], dict[str, Tensor]]:
    """Make masks of one value everywhere, as a function of the layer: site -> [members, 1, width]."""
    return lambda index: {
        site: torch.full((members, 1, width(frozen.shapes[index])), value)
        for site, width in SITE_WIDTH.items()
        if width(frozen.shapes[index]) and site != EXPERT_NEURON
    }


def random_masks(
    frozen: FrozenModel, members: int, rows: int, seed: int = 0, requires_grad: bool = False
) -> list[dict[str, Tensor]]:
    """Draw uniform masks of every layer: site -> [members, rows, width]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            site: torch.rand(members, rows, width(shape), generator=generator).requires_grad_(requires_grad)
            for site, width in SITE_WIDTH.items()
            if width(shape) and site != EXPERT_NEURON
        }
        for shape in frozen.shapes
    ]
