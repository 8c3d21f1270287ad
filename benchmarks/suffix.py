"""Measure updates that run the suffix alone, against stored activations of the corrupted run, beside the two-stream pass.

    python -m benchmarks.suffix PAIRS_GPT2 TOKENIZER PAIRS_SMALL MODEL_SMALL [--rounds 9] [--members 1 8]

PAIRS_GPT2: pairs for a model of GPT-2's small shape with random weights and this tokenizer. PAIRS_SMALL: pairs that MODEL_SMALL
solves. Both kinds of update alternate in one process; ratios are medians of pairs of updates.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from benchmarks.step_time import floor, make_model
from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.data.collate import batch_indices
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.data.training_order import TrainingOrder
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.corrupted_store import CorruptedStore, Lengths
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import ATTENTION, MLP, node_counts
from bigcircuit.model.sites import FrozenModel, find_sites
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import update

OUTPUT = Path(__file__).with_suffix(".md")


class Case(NamedTuple):
    """A model and the examples of its updates, in batches of `batch`."""

    name: str
    frozen: FrozenModel
    examples: list[Example]
    batch: int


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Make the models and read the pairs."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    torch.manual_seed(0)
    gpt2 = find_sites(
        GPT2LMHeadModel(GPT2Config(vocab_size=128_256)).eval().requires_grad_(False)
    )  # ids of the answers
    yield Case("GPT-2 small shape, IOI", gpt2, read(arguments.pairs_gpt2, tokenizer, gpt2), 8)
    small = find_sites(AutoModelForCausalLM.from_pretrained(arguments.model_small).eval().requires_grad_(False))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_small)
    yield Case(arguments.model_small.name, small, read(arguments.pairs_small, tokenizer, small), 16)
    yield Case("Llama of 46M, 256 tokens, 224 shared", make_model(), long_examples(256, 224), 8)


def read(path: Path, tokenizer: object, frozen: FrozenModel) -> list[Example]:
    """Read the training pairs of a file."""
    task = load(None, {"task.name": "pairs", "task.path": str(path), "task.size": 200}).task
    return load_task(task, tokenizer, frozen.model.config).splits["train"]


def long_examples(tokens: int, shared: int) -> list[Example]:
    """Draw random pairs that share their first tokens."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(3, 16_000, (16, tokens), generator=generator).tolist()
    return [
        Example(
            id=index,
            clean=tuple(row),
            corrupted=(*row[:shared], row[shared] + 1, *row[shared + 1 :]),
            answers=((5,),),
            wrong_answers=((6,),),
            source="",
        )
        for index, row in enumerate(clean)
    ]


def updates(streams: Streams, case: Case, count: int) -> tuple[Callable[[], None], Callable[[], None], CorruptedStore]:
    """Return a two-stream update and one over the suffix, of populations of so many members, and the store."""
    values = {"population.seeds": count, "train.steps": 100_000, "train.batch_size": case.batch}
    config = load(None, values)
    shapes, micro_batches = streams.frozen.shapes, MicroBatches.of(config, Ranks())
    references = ReferenceLogits(streams, case.examples, micro_batches)
    store = CorruptedStore(streams, case.examples, micro_batches, (ATTENTION, MLP))

    def make(store: CorruptedStore | None) -> Callable[[], None]:
        state = TrainState.new(Population.new(members(config), shapes), node_counts(shapes, config.gates.granularities))
        steps = iter(range(sys.maxsize))
        order = TrainingOrder(case.examples, case.batch, 0, over_suffix=True)

        def run() -> None:
            step = next(steps)
            # Two streams as before there was a store: batches as drawn.
            drawn = batch_indices(len(case.examples), case.batch, step, 0)
            chosen = [case.examples[index] for index in drawn] if store is None else order.batch(step)
            update(state, streams, references, chosen, micro_batches, store)

        return run

    return make(None), make(store), store


def seconds(run: Callable[[], None]) -> float:
    """Measure the CPU time of a call, s, which other work on the machine changes little."""
    start = time.process_time()
    run()
    return time.process_time() - start


def _end_of_key(row: str) -> int:
    """Place of the fifth bar of a row: before it are model, share, batch and members."""
    return [place for place, letter in enumerate(row) if letter == "|"][4]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs_gpt2", "tokenizer", "pairs_small", "model_small"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="part of the names of the models to measure; all when empty")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    lines = [
        f"# Updates over the suffix, {date.today()}",
        "",
        f"`python -m benchmarks.suffix`: float32, {torch.get_num_threads()} thread(s), torch {torch.__version__}; CPU "
        "seconds, medians of alternating rounds. Floor: plain forward pass without a graph, and forward and backward, of the "
        "first batch. MB: of the store.",
        "",
        "| pairs | shared | batch | members | rounds | two streams, s | suffix, s | suffix / two streams | suffix / floor | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = {line[: 1 + _end_of_key(line)]: line for line in OUTPUT.read_text().splitlines()[len(lines) :]}
    for case in (one for one in cases(arguments) if arguments.only in one.name):
        lengths = [Lengths.of(example) for example in case.examples]
        share = sum(one.prefix for one in lengths) / sum(map(sum, lengths))
        base = floor(case.frozen, case.examples[: case.batch])
        with Streams(case.frozen, INTERCHANGE) as streams:
            for count in arguments.members:
                before, after, store = updates(streams, case, count)
                rounds = [(seconds(before), seconds(after), seconds(base)) for _ in range(arguments.rounds + 2)][2:]
                times = [statistics.median(column) for column in zip(*rounds, strict=True)]
                ratios = [statistics.median(b / x for x, b in zip(column, [r[1] for r in rounds], strict=True))
                          for column in ([r[0] for r in rounds], [r[2] for r in rounds])]  # fmt: skip
                key = f"| {case.name} | {share:.2f} | {case.batch} | {count} |"
                rows[key] = (
                    f"{key} {arguments.rounds} | {times[0]:.3f} | {times[1]:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} | "
                    f"{store.bytes / 1e6:.1f} |"
                )
                OUTPUT.write_text("\n".join([*lines, *rows.values()]) + "\n")
                print(rows[key], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
