"""Measure step time, peak memory and tokens per second of large models with random bfloat16 weights.

The floor is the time of the plain Hugging Face model for the same batch with the same weights, whole (stage 0) or divided over
ranks (ZeRO stage 3): one forward pass without a graph, and one forward and backward pass of activations only. Floor and
updates alternate in one process; times are medians. Every row is kept in a JSON file beside the table and replaced when it is
measured again, so sizes, stages and populations can be measured one at a time:

    python benchmarks/gpu.py --sizes 7b --stages 0 --members 1 4 8
    torchrun --nproc-per-node 4 benchmarks/gpu.py --sizes 32b --stages 3
"""

import argparse
import gc
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import TaskData
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks, joined_ranks
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.deepspeed_config import DeepSpeedConfig, read_deepspeed, with_auto_values
from bigcircuit.model.granularity import node_counts
from bigcircuit.model.resolve import ResolvedModel
from bigcircuit.model.sites import FrozenModel, find_sites
from bigcircuit.model.zero3 import loading_sharded, shard
from bigcircuit.train.resolve import ResolvedRun
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import update

OUTPUT = Path(__file__).with_suffix(".md")
STAGES = Path(__file__).parents[1] / "configs/deepspeed"
GIB = 2**30
_FIELDS = "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
SIZES = {
    "tiny": ("llama", 512, 64, 128, 2, 4, 2),  # to try the script without a GPU
    "7b": ("llama", 32_000, 4096, 11_008, 32, 32, 32),  # Llama 2 7B
    "13b": ("llama", 32_000, 5120, 13_824, 40, 40, 40),  # Llama 2 13B
    "32b": ("qwen2", 152_064, 5120, 27_648, 64, 40, 8),  # Qwen 2.5 32B
}


class Case(NamedTuple):
    """Model and batch, measured for several populations in turn."""

    size: str
    stage: int
    """ZeRO stage: 0 for whole weights, 3 for weights divided over ranks."""
    batch: int
    """Pairs per rank and pass."""
    tokens: int
    """Tokens per prompt."""
    checkpointing: bool
    """Whether updates and floor use activation checkpointing."""


class Row(NamedTuple):
    """Figures of a population: times in seconds, memory in GiB of rank 0; None if not measured or if it did not fit."""

    case: Case
    members: int
    ranks: int
    measured: str
    """Date and device of the measurement."""
    predicted: float | None = None
    floor: float | None = None
    update: float | None = None
    ratio: float | None = None
    """Median of update / floor in the same round."""
    floor_peak: float | None = None
    peak: float | None = None


class Cost(NamedTuple):
    """Cost of a call."""

    seconds: float
    peak: int | None
    """Most bytes allocated on the GPU; None without a GPU."""


def deepspeed(stage: int) -> DeepSpeedConfig | None:
    """Read the DeepSpeed config that comes with the package; None for whole weights."""
    return read_deepspeed(str(STAGES / f"zero{stage}.json"))


def build(size: str, stage: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> FrozenModel:
    """Build a frozen model with random weights directly on the device, under ZeRO-3 divided from the start."""
    disable_progress_bar()
    sharding = deepspeed(stage)
    if sharding is not None:
        sharding = with_auto_values(sharding, build(size, 0, torch.device("meta"), dtype))
    config = AutoConfig.for_model(**dict(zip(_FIELDS, SIZES[size], strict=True)))
    torch.manual_seed(0)
    with loading_sharded(sharding, dtype), device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    frozen = find_sites(model.requires_grad_(False).eval())
    return frozen if sharding is None else shard(frozen, device, sharding)


@contextmanager
def built(case: Case, device: torch.device) -> Iterator[FrozenModel]:
    """Build the model of a case and free its weights at the end, even while DeepSpeed still refers to its modules."""
    frozen = build(case.size, case.stage, device)
    if case.checkpointing:
        frozen.model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield frozen
    finally:
        for parameter in frozen.model.parameters():
            for tensor in (parameter, getattr(parameter, "ds_tensor", parameter)):
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)


def make_examples(count: int, tokens: int, vocabulary: int) -> list[Example]:
    """Draw random pairs of equal length: clean and corrupted prompt differ in four tokens, answers have one token."""
    rng, found = random.Random(0), []
    for index in range(count):
        clean = [rng.randrange(vocabulary) for _ in range(tokens)]
        corrupted = [*clean[:2], *(rng.randrange(vocabulary) for _ in range(4)), *clean[6:]]
        found.append(
            Example(
                id=index,
                clean=tuple(clean),
                corrupted=tuple(corrupted),
                answers=((5,),),
                wrong_answers=((6,),),
                source="",
            )
        )
    return found


def settings(case: Case, count: int, ranks: int = 1) -> Config:
    """Return a config of `count` members whose update is one pass on every rank."""
    values = {"population.seeds": count, "model.dtype": "bfloat16", "train.checkpointing": case.checkpointing}
    sizes = {"batch_size": case.batch * ranks, "micro_batch_size": case.batch, "steps": 100_000}
    return load(None, values | {f"train.{name}": value for name, value in sizes.items()})


def floor(frozen: FrozenModel, examples: Sequence[Example], micro_batches: MicroBatches) -> Callable[[], None]:
    """Return a function that makes the plain model's passes over this rank's tokens, with logits at the last position only."""
    batch, model = next(micro_batches.iterate(examples, full=False)).batch, frozen.model

    def run() -> None:
        with torch.no_grad():
            model(input_ids=batch.corrupted, use_cache=False, logits_to_keep=1)
        embedded = model.get_input_embeddings()(batch.clean).requires_grad_()
        for layer in frozen.layers:
            layer.module.training = True  # transformers uses activation checkpointing in training mode only
        logits = model(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits
        logits.float().log_softmax(-1)[:, 0, 0].sum().backward()
        frozen.release_gathered()
        for layer in frozen.layers:
            layer.module.training = False

    return run


def new_state(frozen: FrozenModel, config: Config) -> TrainState:
    """Initialise the gates of all members on the device of the model."""
    population = Population.new(members(config), frozen.shapes, frozen.device)
    return TrainState.new(population, node_counts(frozen.shapes, config.gates.granularities))


def cost(run: Callable[[], Any], device: torch.device) -> Cost:
    """Measure a call: wall time until the device is done, and peak memory."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize(device)
    return Cost(time.perf_counter() - start, torch.cuda.max_memory_allocated(device) if on_gpu else None)


def predicted(case: Case, count: int, ranks: int = 1) -> float:
    """Predict the GiB that a rank needs, as `bigcircuit check` does without weights."""
    from bigcircuit.memory.estimate import Workload, estimate

    work = Workload(tokens=case.tokens, answer=1, rows=1, trained=case.batch * ranks, validated=0, ranks=ranks)
    config, meta = settings(case, count, ranks), build(case.size, 0, torch.device("meta"))
    model = ResolvedModel(
        config=config.model,
        hf_config=meta.model.config,
        tokenizer=None,
        skeleton=meta,
        deepspeed=deepspeed(case.stage),
    )
    run = ResolvedRun(
        config=config,
        members=tuple(members(config)),
        model=model,
        data=TaskData(splits={}, pairs=[], sha256="", tokens_sha256=""),
        ablation_data=None,
        micro_batches=MicroBatches(config.train.micro_batch_size),
    )
    return estimate(run, work, is_gpu=True).total / GIB


def measure(case: Case, counts: Sequence[int], rounds: int, ranks: Ranks) -> Iterator[Row]:
    """Yield a row for each number of members, smallest first; from the first that does not fit on, without figures."""
    on = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
    measured = f"{date.today()}, {on}, torch {torch.__version__}"
    left = [
        Row(case=case, members=count, ranks=ranks.size, measured=measured, predicted=predicted(case, count, ranks.size))
        for count in sorted(counts)
    ]
    with (
        suppress(torch.OutOfMemoryError),
        built(case, ranks.device) as frozen,
        Streams(frozen, INTERCHANGE, case.checkpointing) as streams,
    ):
        micro_batches = MicroBatches.of(settings(case, 1, ranks.size), ranks)
        examples = make_examples(case.batch * ranks.size, case.tokens, frozen.model.config.vocab_size)
        references, base = ReferenceLogits(streams, examples, micro_batches), floor(frozen, examples, micro_batches)
        while left:
            state = new_state(frozen, settings(case, left[0].members, ranks.size))
            pairs = []
            for _ in range(rounds + 2):
                plain = cost(base, ranks.device)
                pairs.append(
                    (plain, cost(lambda s=state: update(s, streams, references, examples, micro_batches), ranks.device))
                )
            yield filled(left[0], pairs[2:])
            left.pop(0)
    gc.collect()
    torch.cuda.empty_cache()
    yield from left


def filled(row: Row, pairs: Sequence[tuple[Cost, Cost]]) -> Row:
    """Fill a row with the median times and the highest peak of the rounds."""
    times = [statistics.median(one.seconds for one in column) for column in zip(*pairs, strict=True)]
    peaks = [max((one.peak or 0) for one in column) / GIB or None for column in zip(*pairs, strict=True)]
    ratio = statistics.median(ours.seconds / plain.seconds for plain, ours in pairs)
    return row._replace(floor=times[0], update=times[1], ratio=ratio, floor_peak=peaks[0], peak=peaks[1])


COLUMNS = (
    "model, ZeRO, ranks, pairs x tokens, checkpointing, members, floor s, update s, update / floor, stage-0 floor s, "
    "of single runs, tokens/s, peak GiB, floor's peak GiB, predicted GiB, measured".split(", ")
)
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def line(row: Row, rows: Sequence[Row]) -> str:
    """Format a row of the table; rows: all rows, for the comparison with single runs and whole weights."""
    case = row.case
    whole = [r.floor for r in rows if (r.case, r.ranks) == (case._replace(stage=0), row.ranks) and r.floor]
    single = next((r.update for r in rows if (r.case, r.ranks, r.members) == (case, row.ranks, 1)), None)
    share = row.update / (row.members * single) if row.update and single else None
    speed = case.batch * case.tokens * row.ranks * row.members / row.update if row.update else None
    memory = (row.peak, row.floor_peak, row.predicted)
    figures = (row.floor, row.update, row.ratio, statistics.median(whole) if whole else None, share, speed, *memory)
    styles = (".4f", ".4f", ".3f", ".4f", ".1%", ",.0f", ".2f", ".2f", ".2f")
    shown = ["-" if value is None else format(value, style) for value, style in zip(figures, styles, strict=True)]
    if row.update is None:
        shown[1] = "does not fit"
    names = (case.size, case.stage, row.ranks, f"{case.batch} x {case.tokens}", "yes" if case.checkpointing else "no")
    return f"| {' | '.join(map(str, (*names, row.members, *shown, row.measured)))} |"


def merged(rows: Sequence[Row], row: Row) -> list[Row]:
    """Return the rows with an older row of the same case replaced."""
    order = list(SIZES)
    kept = [other for other in rows if other[:3] != row[:3]]
    return sorted([*kept, row], key=lambda r: (order.index(r.case.size), r.ranks, *r.case[1:], r.members))


def read(output: Path | None) -> list[Row]:
    """Read the rows measured so far."""
    if output is None or not output.with_suffix(".json").exists():
        return []
    return [Row(Case(*row[0]), *row[1:]) for row in json.loads(output.with_suffix(".json").read_text())]


def write(output: Path, rows: Sequence[Row]) -> None:
    """Write the table, and the rows beside it as JSON."""
    output.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    text = [
        f"# Large models, {date.today()}\n",
        "Random weights, bfloat16, interchange ablation. Floor: plain no-grad forward + forward and backward with respect to "
        "activations,\nthe same weights in the same run. Of single runs: update / (members x update of one member). Tokens: those "
        "of the clean prompts,\ntimes members. Peaks are of allocated memory on the first rank. Goals: at most 1.10 floors at 1 "
        "member, and 8 members in at\nmost 60% of 8 single runs.\n",
        HEADER,
        *(line(row, rows) for row in rows),
    ]
    output.write_text("\n".join(text) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["7b"])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--stages", type=int, nargs="+", choices=(0, 3), default=[0, 3])
    parser.add_argument("--batch", type=int, default=8, help="pairs of one rank (default 8)")
    parser.add_argument("--tokens", type=int, default=128, help="length of a prompt (default 128)")
    parser.add_argument("--rounds", type=int, default=10, help="that are counted, after two that are not (default 10)")
    parser.add_argument("--checkpointing", action="store_true", help="run layers again in the backward pass")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--output", type=Path, help=f"table to write (default on a GPU: {OUTPUT.name} beside the script)"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args()


def main() -> None:
    """Measure and write the table after every row."""
    arguments = parse()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for a GPU: ranks would use it
    elif not torch.cuda.is_available():
        print("no GPU is here: nothing measured, the table stays as it is (--device cpu --sizes tiny tries the script)")  # noqa: T201
        return
    output = arguments.output or (OUTPUT if arguments.device == "cuda" else None)
    with joined_ranks() as ranks:
        rows = read(output)
        if ranks.is_first:
            print(HEADER, flush=True)  # noqa: T201
        for size in arguments.sizes:
            for stage in sorted(arguments.stages):
                case = Case(size, stage, arguments.batch, arguments.tokens, arguments.checkpointing)
                for row in measure(case, arguments.members, arguments.rounds, ranks):
                    rows = merged(rows, row)
                    if ranks.is_first:
                        print(line(row, rows), flush=True)  # noqa: T201
                    if ranks.is_first and output:
                        write(output, rows)


if __name__ == "__main__":
    main()
