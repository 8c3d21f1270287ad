"""Which model types of transformers can be masked: every causal one is built tiny and has to keep all invariants.

    python -m benchmarks.models [TYPE ...] [--output docs/models.md]

For both paddings: with all gates open the circuit equals the plain model, with all closed the model on corrupted
prompts, alone and with two or three circuits at once. Besides: passes over the suffix alone, the checks that every model goes
through when it is loaded (`forward/model_check.py`: no path around the gates, gradients of projections, no look at later tokens),
and the number of parameters of a full and of an empty circuit. A type fails if one of these fails; one that is refused is so by its
config alone.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.machine import cpu_name
from benchmarks.tiny_types import tiny_config
from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.collate import Batch, collate
from bigcircuit.errors import UserError
from bigcircuit.forward.model_check import check_loaded_model
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import discretise
from bigcircuit.model.architectures import ARCHITECTURES, REFUSED
from bigcircuit.model.granularity import MLP_OUTPUT, SITE_WIDTH, has_masks
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.model.sites import FrozenModel, find_sites
from tests.helpers.tiny_models import long_examples, random_masks, tiny_examples

WORKS, REFUSES, FAILS, ABSENT = "works", "refused", "FAILS", "not built"
TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_LARGEST = 40_000_000
"""Parameters above which a type is not tiny."""
_CLOSE = 2e-5
"""Largest difference of logits with all gates closed."""
FAMILIES: dict[str, str] = {
    "Qwen3": "qwen3",
    "Qwen2.5, QwQ, R1 distilled to Qwen": "qwen2",
    "Qwen3 30B-A3B, 235B": "qwen3_moe",
    "Qwen3-Next": "qwen3_next",
    "Qwen3.5": "qwen3_5_text",
    "Qwen3.5 mixtures": "qwen3_5_moe_text",
    "Qwen3-VL": "qwen3_vl_text qwen3_vl_moe_text",
    "Qwen2.5-VL": "qwen2_5_vl_text",
    "Llama 3, R1 distilled to Llama": "llama",
    "Llama 4": "llama4_text",
    "Llama 3.2 Vision": "mllama_text_model",
    "Gemma 2": "gemma2",
    "Gemma 3 270M, 1B": "gemma3_text",
    "Gemma 3 4B to 27B": "gemma3_text",
    "Gemma 3n": "gemma3n_text",
    "Gemma 4": "gemma4_text",
    "gpt-oss": "gpt_oss",
    "DeepSeek V3, R1": "deepseek_v3",
    "DeepSeek V3.2, V4": "deepseek_v32 deepseek_v4",
    "Mistral 7B, Nemo, Small": "mistral",
    "Mistral Small 3.1": "mistral",
    "Ministral 3": "ministral3",
    "Mixtral": "mixtral",
    "Phi-4, Phi-4-mini": "phi3",
    "Phi-4-multimodal, Phi-3.5-MoE": "phi4_multimodal phimoe",
    "GLM-4": "glm4",
    "GLM-4.5 to 4.7": "glm4_moe",
    "Granite 3": "granite",
    "Granite 4": "granitemoehybrid",
    "OLMo 2, 3": "olmo2 olmo3",
    "OLMoE, OLMo hybrid": "olmoe olmo_hybrid",
    "Nemotron-H, Nemotron 3": "nemotron_h",
    "Kimi K2, Kimi Linear": "deepseek_v3 kimi_linear",
    "MiniMax M1, M2, M3": "minimax minimax_m2 minimax_m3_vl_text",
    "Falcon-H1": "falcon_h1",
    "Falcon 7B, 40B": "falcon",
    "SmolLM3": "smollm3",
    "LFM2, LFM2-MoE": "lfm2 lfm2_moe",
    "EXAONE 4, Seed-OSS, Command R and A": "exaone4 seed_oss cohere2",
    "ERNIE 4.5, Hunyuan": "ernie4_5 ernie4_5_moe hunyuan_v1_dense hunyuan_v1_moe",
}
"""Family of models -> model types of its language models."""
HOLDERS = {
    "qwen3_vl_text": "qwen3_vl",
    "qwen3_vl_moe_text": "qwen3_vl_moe",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "mllama_text_model": "mllama",
}
"""Language model that has no causal class of its own -> type of the multimodal model that holds it."""


_ABOUT = """# Models

Made by `python -m benchmarks.models` with {versions} on {processor}. Every causal model
type is built tiny, with random weights, and is checked: open gates are the plain model and closed gates the model on corrupted
prompts, for both paddings and one to three circuits at once, over the suffix alone as with both streams; nothing writes into the
residual stream around the gates; gradients are those of the matrices; no token sees later ones; the parameters of a full circuit
are all. Real checkpoints were not tried.

**{counts}**

Every model is checked again, in a few small passes, when its weights are loaded. `model.architecture: guess` opens types that are
not listed and whose modules have the same names; what was guessed is checked in the same way.
"""
_NODES = """Mixers that are no attention have their own gates: `mixer`, `mixer_head`, `mixer_neuron`. The experts of a mixture have
`expert` and, where it is asked for, `expert_neuron`; shared experts are the MLP of their layer. Updates run the suffix of a prompt
alone (`train.store`) for {suffix} types, whose layers keep keys and values of earlier tokens and nothing else; for the others all
tokens are run.

The value of an expert at a token is routing weight x output, and 0 where the router chose others; that of a neuron of an expert
is routing weight x activation. A closed one outputs what it had for the corrupted token, with the experts and weights of that
token, under interchange ablation; nothing under zero ablation; and under mean, noise and optimal ablation its constant at every
token. Means count the tokens that went to other experts, with 0, so closing all experts of a layer leaves the mean of what they
add. A constant is a vector of the residual width for an expert and a number for a neuron; with the latter, a bias of an expert's
down projection (`gpt_oss`) has the mean routing weight as its constant. In `llama4` and `llama4_text`, all of whose experts see
every token, experts can be closed and their neurons cannot.
"""
_EXACT = """With all gates open a circuit has the logits of the plain model, to the last bit, in {open}.
It has the same logits alone and beside others, to the last bit, in {others}.
They have gates or weights of a few numbers a token (of a shared expert, a router or a recurrent mixer), and torch computes the last
numbers of a tensor, those that fill no register, by other code: `softplus` of 108 numbers is not that of its three thirds. So a
token's last digits depend there on how many tokens there are, and which types these are depends on the processor. Experts
themselves are called once for each circuit.
"""


class Outcome(NamedTuple):
    """What was found of a type."""

    result: str
    """One of WORKS, REFUSES, FAILS, ABSENT."""
    kind: str
    reason: str = ""
    exact: bool = True
    """Whether a circuit has the same logits alone and beside others, to the last bit."""
    open_exact: bool = True
    """Whether a circuit with all gates open has the logits of the plain model, to the last bit."""


def build_tiny(model_type: str, **settings: Any) -> Any:
    """Build a tiny frozen model with random weights, always the same. Raises ValueError if it is not tiny."""
    holder = HOLDERS.get(model_type, model_type)
    config = tiny_config(holder, **settings)
    if holder in HOLDERS.values() and holder != "mllama":
        from transformers import AutoModelForImageTextToText as Auto
    else:
        Auto = AutoModelForCausalLM
    with torch.device("meta"):
        size = sum(p.numel() for p in Auto.from_config(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = Auto.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def examine(model_type: str) -> Outcome:
    """Build a type and check everything."""
    if model_type in REFUSED:
        return Outcome(REFUSES, REFUSED[model_type], "by its config")
    row = ARCHITECTURES.get(model_type)
    try:
        model = build_tiny(model_type)
    except Exception as error:  # whatever transformers raises for settings that it does not like
        return Outcome(
            ABSENT, row.kind if row else "", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}"
        )
    try:
        frozen = find_sites(model)
    except UserError as error:
        return Outcome(REFUSES, "", str(error))
    try:
        if fault := next(faults(frozen), None):
            return Outcome(FAILS, frozen.architecture.kind, fault)
    except Exception as error:  # a fault of ours or of the model is a result here
        return Outcome(FAILS, frozen.architecture.kind, f"{type(error).__name__}: {str(error)[:150]}")
    return Outcome(WORKS, frozen.architecture.kind, exact=is_exact(frozen), open_exact=is_plain_when_open(frozen))


def is_exact(frozen: FrozenModel) -> bool:
    """Compare the logits of three circuits with random masks that share a pass with those of each alone, to the last bit."""
    examples = tiny_examples()
    batch = collate(examples, full=True)
    masks = random_masks(frozen, 3, len(batch.clean))
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        together = streams.masked(batch, masks.__getitem__, 3)
        alone = [
            streams.masked(batch, lambda index, own=own: {s: m[own : own + 1] for s, m in masks[index].items()}, 1)[0]
            for own in range(3)
        ]
    return torch.equal(together, torch.stack(alone))


def is_plain_when_open(frozen: FrozenModel) -> bool:
    """Compare the logits of a circuit with all gates open with those of the plain model, to the last bit, for both paddings."""
    return all(torch.equal(*_open_and_plain(frozen, padding)) for padding in ("right", "left"))


def _open_and_plain(frozen: FrozenModel, padding: str) -> tuple[Tensor, Tensor]:
    batch = collate(tiny_examples(), full=True, padding=padding)
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        return streams.masked(batch, _constant(frozen, [1.0]), 1)[0], _plain(frozen, batch.clean, batch)


def faults(frozen: FrozenModel) -> Iterator[str]:
    """Yield what is wrong with gates on a model."""
    for padding in ("right", "left"):
        batch = collate(tiny_examples(), full=True, padding=padding)
        with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
            clean, corrupted = _plain(frozen, batch.clean, batch), _plain(frozen, batch.corrupted, batch)
            if not torch.allclose(*_open_and_plain(frozen, padding), atol=_CLOSE):
                yield f"{padding} padding: open gates are not the plain model"
            for values in ([0.0], [0.0, 0.0], [1.0, 0.0, 0.0]):
                closed = streams.masked(batch, _constant(frozen, values), len(values))[-1]
                if not torch.allclose(closed, corrupted, atol=_CLOSE):
                    yield f"{padding} padding, {len(values)} circuits: closed gates are not the model on corrupted prompts"
            if torch.allclose(clean, corrupted, atol=1e-3):
                yield "the prompts make no difference"
    if frozen.architecture.suffix and not torch.allclose(*_two_ways(frozen), atol=_CLOSE):
        yield "passes over the suffix are not those with both streams"
    check_loaded_model(frozen)
    full = discretise({"block": torch.ones(len(frozen.shapes), 1)}, frozen.shapes, {})
    whole, nothing = (
        count_parameters(frozen, masks)
        for masks in (full, {name: torch.zeros_like(mask) for name, mask in full.items()})
    )
    if whole.kept != whole.total or nothing.kept:
        yield "parameters of the full or the empty circuit are miscounted"


def _two_ways(frozen: FrozenModel) -> tuple[Tensor, Tensor]:
    """Logits of two circuits with random masks over the suffix alone, and with both streams."""
    batch = collate(long_examples(), full=False, padding="aligned")
    masks = random_masks(frozen, 2, len(batch.clean))
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        corrupted = streams.record(batch, masks[0])
        return streams.masked(batch, masks.__getitem__, 2, corrupted), streams.masked(batch, masks.__getitem__, 2)


def _plain(frozen: FrozenModel, tokens: Tensor, batch: Batch) -> Tensor:
    logits = frozen.model(
        input_ids=tokens, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    ).logits
    return logits[batch.score_row, batch.score_position]


def _constant(frozen: FrozenModel, values: list[float]) -> Any:
    column = torch.tensor(values).view(-1, 1, 1)
    return lambda index: {
        site: column.expand(-1, 1, width(frozen.shapes[index]))
        for site, width in SITE_WIDTH.items()
        if width(frozen.shapes[index]) and has_masks(site, (MLP_OUTPUT,))
    }


def page(found: dict[str, Outcome]) -> str:
    """Write docs/models.md of the outcomes of all types, with those of the types in FAMILIES."""
    causal = {name: outcome for name, outcome in found.items() if name in TYPES}
    working = [name for name, outcome in causal.items() if outcome.result == WORKS]
    families = {family: [found[name].result for name in names.split()] for family, names in FAMILIES.items()}
    whole = [family for family, results in families.items() if set(results) == {WORKS}]
    versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch"))
    counts = f"{len(working)} of {len(causal)} causal model types and {len(whole)} of {len(FAMILIES)} families work."
    lines = [
        _ABOUT.format(versions=versions, processor=cpu_name(), counts=counts),
        "## Families",
        "",
        "Of a multimodal model the language model counts, by its text config.",
        "",
        "| family | model types | |",
        "|---|---|---|",
        *(
            f"| {family} | {_code(FAMILIES[family])} | {', '.join(dict.fromkeys(results))} |"
            for family, results in families.items()
        ),
        "",
        "## Types that work",
        "",
        "| kind | | model types |",
        "|---|---|---|",
    ]
    for kind in dict.fromkeys(outcome.kind for outcome in causal.values() if outcome.result == WORKS):
        names = [name for name in working if causal[name].kind == kind]
        lines.append(f"| {kind} | {len(names)} | {_code(' '.join(names))} |")
    lines += [
        "",
        _NODES.format(suffix=sum(row.suffix for row in ARCHITECTURES.values())),
        _EXACT.format(
            open=_all_but(name for name in working if not causal[name].open_exact),
            others=_all_but(name for name in working if not causal[name].exact),
        ),
        "These parts of layers have no gates and are always open:",
        "",
        *(
            f" - {_code(name)}: {_code(' '.join(row.always_open))}"
            for name, row in ARCHITECTURES.items()
            if row.always_open
        ),
        "",
        "## Types that are refused",
        "",
        "| model type | why |",
        "|---|---|",
        *(f"| `{name}` | {one.kind or one.reason} |" for name, one in causal.items() if one.result == REFUSES),
        "",
        "## Types that were not built",
        "",
        "| model type | why |",
        "|---|---|",
        *(f"| `{name}` | {one.reason} |" for name, one in causal.items() if one.result == ABSENT),
        "",
    ]
    failed = [f" - `{name}`: {one.reason}" for name, one in causal.items() if one.result == FAILS]
    return "\n".join([*lines, *(["## Types that fail", "", *failed, ""] if failed else [])])


def _all_but(names: Iterable[str]) -> str:
    return "all types but: " + _code(found) if (found := " ".join(names)) else "all types"


def _code(names: str) -> str:
    return " ".join(f"`{name}`" for name in names.split())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    wanted = [name for names in FAMILIES.values() for name in names.split()]
    found = {}
    for name in arguments.types or dict.fromkeys([*TYPES, *wanted]):
        found[name] = examine(name)
        one = found[name]
        words = [one.result, one.kind, one.reason, "" if one.exact else "other bits beside other circuits"]
        words.append("" if one.open_exact else "other bits than the plain model")
        sys.stdout.write(f"{name}: {', '.join(filter(None, words))}\n")
        sys.stdout.flush()
    if arguments.output and not arguments.types:
        arguments.output.write_text(page(found), encoding="utf-8")
    raise SystemExit(any(outcome.result == FAILS for outcome in found.values()))


if __name__ == "__main__":
    main()
