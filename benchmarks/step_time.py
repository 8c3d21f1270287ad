"""Measure the time of an update against the floor, on a Llama of about 50M parameters with random weights.

The floor is the time of the plain Hugging Face model for the same batch: one forward pass without a graph, and one forward and
backward pass with respect to activations only. Floor and updates alternate in one process; ratios are medians of pairs.

    python benchmarks/step_time.py [--rounds 15] [--members 1 2 4 8]
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import node_counts
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


def step(streams: Streams, examples: list[Example], count: int) -> Callable[[], None]:
    """Return a function that makes an update of a population of `count` members."""
    config = load(None, {"population.seeds": count, "train.steps": 100_000})
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


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    frozen, examples = make_model(), make_examples()
    parameters = frozen.model.num_parameters() / 1e6
    base = floor(frozen, examples)
    lines = [
        f"# Time of one update, {date.today()}",
        "",
        f"Llama of {parameters:.1f}M parameters, float32, batch {BATCH} x {TOKENS}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; medians of {arguments.rounds} alternating rounds. Floor: plain no-grad forward + forward "
        "and backward.",
        "",
        "| members | floor, s | update, s | update / floor | per member, floors |",
        "|---|---|---|---|---|",
    ]
    with Streams(frozen, INTERCHANGE) as streams:
        for count in arguments.members:
            run = step(streams, examples, count)
            pairs = [(seconds(base), seconds(run)) for _ in range(arguments.rounds + 2)][2:]
            ratio = statistics.median(b / a for a, b in pairs)
            times = [statistics.median(column) for column in zip(*pairs, strict=True)]
            lines.append(f"| {count} | {times[0]:.3f} | {times[1]:.3f} | {ratio:.3f} | {ratio / count:.3f} |")
            OUTPUT.write_text("\n".join(lines) + "\n")
            print(lines[-1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
