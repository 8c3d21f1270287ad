"""Measure the time of an update against the floor, on a Llama and on a mixture of experts with random weights.

The floor is the time of the plain Hugging Face model for the same batch: one forward pass without a graph, and one forward and
backward pass with respect to activations only. Floor and updates alternate in one process; ratios are medians of pairs.

    python -m benchmarks.step_time [--model llama mixture] [--rounds 15] [--members 1 2 4 8]

Sections of models that are not measured again are kept.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import EXPERT_NEURON, GATED, node_counts
from bigcircuit.model.sites import FrozenModel, find_sites
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import update

BATCH, TOKENS = 8, 64
OUTPUT = Path(__file__).with_suffix(".md")


def make_model() -> FrozenModel:
    """Build a Llama: 12 layers, width 512, 8 query and 4 key/value heads, MLP width 1536, vocabulary 16,384."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_384,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return find_sites(LlamaForCausalLM(config).eval().requires_grad_(False))


def make_mixture() -> FrozenModel:
    """Build a mixture with the proportions of Qwen3 30B-A3B: 4 layers, width 384, 16 query and 2 key/value heads, 128 experts of
    width 144 of which a token has 8, vocabulary 16,384."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=16_384,
        hidden_size=384,
        moe_intermediate_size=144,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=48,
        tie_word_embeddings=True,
    )
    return find_sites(Qwen3MoeForCausalLM(config).eval().requires_grad_(False))


def make_examples(seed: int = 0) -> list[Example]:
    """Draw random pairs of equal length whose clean and corrupted prompts differ in four tokens."""
    rng = random.Random(seed)
    examples = []
    for index in range(BATCH):
        clean = [rng.randrange(16_384) for _ in range(TOKENS)]
        corrupted = [*clean[:10], *(rng.randrange(16_384) for _ in range(4)), *clean[14:]]
        examples.append(
            Example(
                id=index,
                clean=tuple(clean),
                corrupted=tuple(corrupted),
                answers=((5,),),
                wrong_answers=((6,),),
                source="",
            )
        )
    return examples


def floor(frozen: FrozenModel, examples: list[Example]) -> Callable[[], None]:
    """Return a function that makes the plain model's passes over the same tokens, with logits at the last position only."""
    batch = collate(examples, full=False)
    model = frozen.model

    def run() -> None:
        with torch.no_grad():
            model(input_ids=batch.corrupted, use_cache=False, logits_to_keep=1)
        embedded = model.get_input_embeddings()(batch.clean).requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits
        logits.float().log_softmax(-1)[:, 0, 0].sum().backward()

    return run


def step(
    streams: Streams, examples: list[Example], count: int, granularities: Sequence[str] = GATED
) -> Callable[[], None]:
    """Return a function that makes an update of a population of `count` members."""
    config = load(None, {"population.seeds": count, "train.steps": 100_000, "gates.granularities": list(granularities)})
    shapes = streams.frozen.shapes
    state = TrainState.new(Population.new(members(config), shapes), node_counts(shapes, config.gates.granularities))
    micro_batches = MicroBatches.of(config, Ranks())
    references = ReferenceLogits(streams, examples, micro_batches)
    return lambda: update(state, streams, references, examples, micro_batches) and None


def seconds(run: Callable[[], None]) -> float:
    """Measure the wall time of a call, s."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


MODELS = {"llama": make_model, "mixture": make_mixture}
GATES = {
    "llama": {"all": GATED},
    "mixture": {"to experts": GATED, "to neurons of experts": (*GATED, EXPERT_NEURON)},
}
"""Model -> granularities of the gates that are measured, by how they are called."""


def measure(name: str, rounds: int, counts: Sequence[int]) -> list[str]:
    """Measure updates of a model; returns the section of the page."""
    frozen, examples = MODELS[name](), make_examples()
    base = floor(frozen, examples)
    lines = [
        f"## {name}, {date.today()}",
        "",
        f"{frozen.model.num_parameters() / 1e6:.1f}M parameters, float32, batch {BATCH} x {TOKENS}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {rounds} alternating rounds.",
        "",
        "| gates | members | floor, s | update, s | update / floor | per member, floors |",
        "|---|---|---|---|---|---|",
    ]
    with Streams(frozen, INTERCHANGE) as streams:
        for gates, granularities in GATES[name].items():
            for count in counts:
                run = step(streams, examples, count, granularities)
                pairs = [(seconds(base), seconds(run)) for _ in range(rounds + 2)][2:]
                ratio = statistics.median(b / a for a, b in pairs)
                times = [statistics.median(column) for column in zip(*pairs, strict=True)]
                lines.append(
                    f"| {gates} | {count} | {times[0]:.3f} | {times[1]:.3f} | {ratio:.3f} | {ratio / count:.3f} |"
                )
                print(lines[-1], flush=True)  # noqa: T201
    return lines


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    kept = OUTPUT.read_text().split("\n## ")[1:] if OUTPUT.is_file() else []
    parts = {part.split(",")[0]: f"## {part.strip()}" for part in kept}
    for name in arguments.model:
        parts[name] = "\n".join(measure(name, arguments.rounds, arguments.members))
        OUTPUT.write_text(f"{ABOUT}\n" + "".join(f"\n{parts[name]}\n" for name in MODELS if name in parts))


ABOUT = """# Time of one update

Floor: the plain model, one forward pass without a graph, and one forward and backward pass. Both streams of an update are run
(`train.store false`)."""

if __name__ == "__main__":
    main()
