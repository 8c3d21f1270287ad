"""Every listed architecture: gates open are the plain model bit for bit, gates closed are the model on corrupted prompts."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.collate import collate
from bigcircuit.data.pair import Example
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import discretise
from bigcircuit.model.architectures import ARCHITECTURES
from bigcircuit.model.granularity import GRANULARITIES, SITE_WIDTH
from bigcircuit.model.parameter_count import parameters_kept
from bigcircuit.model.sites import architecture_of, find_sites

SMALL = {
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
GPT2_NAMES = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FALCON = {k: v for k, v in SMALL.items() if k not in ("head_dim", "num_key_value_heads")} | {
    "ffn_hidden_size": 48,
    "alibi": False,
}
MULTI_HEAD = {**SMALL, "num_key_value_heads": 4}
CONFIGS = {name: [SMALL] for name in ARCHITECTURES} | {
    "gpt2": [{**GPT2_NAMES, **IDS}],
    "gptj": [{**GPT2_NAMES, **IDS, "rotary_dim": 4}],
    "gpt_neo": [
        {
            **IDS,
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
    ],
    "gemma2": [{**SMALL, "sliding_window": 4, "query_pre_attn_scalar": 8}],
    "gemma3_text": [{**SMALL, "sliding_window": 4, "query_pre_attn_scalar": 8}],
    "granite": [{**SMALL, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.3}],
    "mistral": [{**SMALL, "sliding_window": 4}],
    "qwen2": [SMALL, {**SMALL, "tie_word_embeddings": True}],
    "smollm3": [{**SMALL, "no_rope_layers": [1, 0, 1]}],
    "stablelm": [SMALL, {**SMALL, "use_parallel_residual": True}],
}
CASES = [
    pytest.param(name, settings, id=f"{name}-{i}")
    for name, all_ in sorted(CONFIGS.items())
    for i, settings in enumerate(all_)
]


def build(name: str, settings: dict):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **settings)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return find_sites(model)


def examples(count: int = 3) -> list[Example]:
    """Pairs of several lengths that differ in the middle, so that the scored positions hold equal tokens."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        length = 7 + 2 * index
        clean = torch.randint(3, 96, (length,), generator=generator).tolist()
        corrupted = list(clean)
        corrupted[1:4] = [3 + (token + 7) % 90 for token in clean[1:4]]
        made.append(Example(index, tuple(clean), tuple(corrupted), ((5, 6),), ((7,),), f"row {index}"))
    return made


def constant(frozen, value: float, members: int = 1):
    return lambda index: {
        site: torch.full((members, 1, width(frozen.shapes[index])), value) for site, width in SITE_WIDTH.items()
    }


def plain(model, tokens, batch):
    logits = model(
        input_ids=tokens, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    ).logits
    return logits[batch.score_row, batch.score_position]


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_open_is_plain_and_closed_is_corrupted(name, settings, padding):
    frozen = build(name, settings)
    batch = collate(examples(), full=True, padding=padding)
    with torch.no_grad():
        clean, corrupted = plain(frozen.model, batch.clean, batch), plain(frozen.model, batch.corrupted, batch)
        with Streams(frozen, INTERCHANGE) as streams:
            assert torch.equal(streams.masked(batch, constant(frozen, 1.0), 1)[0], clean)
            two = streams.masked(batch, constant(frozen, 0.0, 2), 2)
        assert torch.equal(two[0], two[1])
        assert torch.allclose(two[0], corrupted, atol=1e-5)
        assert not torch.allclose(clean, corrupted, atol=1e-3)
        assert torch.equal(plain(frozen.model, batch.clean, batch), clean), "hooks were left behind"


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_parameter_count_of_everything_is_the_model(name, settings):
    frozen = build(name, settings)
    shapes = frozen.shapes
    full = discretise({"block": torch.ones(len(shapes), 1)}, shapes, {})
    kept = parameters_kept(frozen, full)
    assert kept.kept == kept.total == sum(p.numel() for layer in frozen.layers for p in layer.module.parameters())
    nothing = parameters_kept(frozen, {name: torch.zeros_like(mask) for name, mask in full.items()})
    assert nothing.kept == 0
    one_head = {name: mask.clone() for name, mask in full.items()}
    one_head["attention_neuron"][0, : shapes[0].head_dim] = False
    one_head["head"][0, 0] = False
    lost = kept.kept - parameters_kept(frozen, one_head).kept
    row = 1 + shapes[0].hidden
    queries, outputs = shapes[0].head_dim * shapes[0].hidden, shapes[0].head_dim * shapes[0].hidden
    group_is_gone = shapes[0].kv_heads == shapes[0].heads
    bound = shapes[0].head_dim * row * (3 if group_is_gone else 1) + outputs
    assert queries + outputs <= lost <= bound


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_row_is_a_known_model_type(name):
    assert name in CONFIGS
    assert architecture_of(AutoConfig.for_model(name, **CONFIGS[name][0])) is ARCHITECTURES[name]


def test_unlisted_architecture_says_how_to_add_it():
    with pytest.raises(UserError, match=r"mamba.*add one row to ARCHITECTURES in bigcircuit/frozen/architectures.py"):
        architecture_of(AutoConfig.for_model("mamba"))


def test_widths_are_read_from_the_model():
    shape = build("llama", SMALL).shapes[0]
    assert shape == (4, 2, 8, 48, 32)
    assert [GRANULARITIES[g].width(shape) for g in ("kv_group", "head", "attention_neuron", "mlp_neuron")] == [
        2,
        4,
        32,
        48,
    ]
