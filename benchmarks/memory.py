"""Measure the peak memory of a rank on CPU: the prediction of `bigcircuit check` against the use of `prune`.

python -m benchmarks.memory [NUMBER ...]        (of the cases below; other rows of the table are kept)
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.memory.estimate import Workload
from bigcircuit.memory.fit import needs
from bigcircuit.runtime.host_memory import FreeMemory
from bigcircuit.train.resolve import resolve
from tests.helpers.launch import free_port, option_words

ROOT = Path(__file__).parents[1]
OUTPUT = Path(__file__).with_suffix(".md")
SIZES = {"33M": (8, 512, 8000), "135M": (8, 1024, 8000)}
"""Name -> layers, hidden size, vocabulary of a Llama with an MLP of four times the hidden size."""


class Case(NamedTuple):
    """Combination of settings to measure."""

    size: str
    batch: int
    """Pairs per rank and pass."""
    tokens: int
    members: int
    stage: str
    """File of configs/deepspeed, for two ranks, or "whole" for one rank."""
    checkpointing: bool
    dtype: str = "float32"
    steps: int = 3


CASES = [
    Case(size="33M", batch=8, tokens=64, members=1, stage="whole", checkpointing=False),
    Case(size="33M", batch=8, tokens=64, members=4, stage="whole", checkpointing=False),
    Case(size="33M", batch=32, tokens=64, members=1, stage="whole", checkpointing=False),
    Case(size="33M", batch=8, tokens=64, members=8, stage="whole", checkpointing=True),
    Case(size="33M", batch=8, tokens=64, members=4, stage="zero3", checkpointing=False),
    Case(size="33M", batch=8, tokens=32, members=8, stage="zero3", checkpointing=True),
    Case(size="135M", batch=8, tokens=64, members=1, stage="whole", checkpointing=False),
    Case(size="135M", batch=8, tokens=64, members=4, stage="whole", checkpointing=False),
    Case(size="135M", batch=8, tokens=64, members=4, stage="whole", checkpointing=True),
    Case(size="135M", batch=32, tokens=32, members=1, stage="whole", checkpointing=True),
    Case(size="135M", batch=8, tokens=64, members=2, stage="zero0", checkpointing=False),
    Case(size="135M", batch=8, tokens=64, members=1, stage="zero3", checkpointing=False),
    Case(size="135M", batch=8, tokens=64, members=4, stage="zero3", checkpointing=True),
    Case(size="135M", batch=4, tokens=64, members=2, stage="zero3_offload_cpu", checkpointing=False),
    Case(size="135M", batch=8, tokens=64, members=2, stage="whole", checkpointing=False, dtype="bfloat16"),
    Case(size="135M", batch=8, tokens=64, members=2, stage="zero3", checkpointing=False, dtype="bfloat16"),
]


def make_model(folder: Path, size: str) -> None:
    """Save a Llama with random weights."""
    layers, hidden, vocabulary = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def make_pairs(path: Path, tokens: int, count: int = 60) -> None:
    """Write a file of pairs of random token ids."""
    rng = random.Random(0)

    def prompt() -> list[int]:
        return [rng.randrange(10, 8000) for _ in range(tokens)]

    rows = [{"clean": prompt(), "corrupted": prompt(), "answers": [[5]], "wrong_answers": [[6]]} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(case: Case, folder: Path) -> dict[str, object]:
    """Return the dotted settings of a case."""
    ranks = 1 if case.stage == "whole" else 2
    stage = {} if case.stage == "whole" else {"deepspeed": str(ROOT / f"configs/deepspeed/{case.stage}.json")}
    return {
        "model.path": str(folder / case.size), "model.dtype": case.dtype, "task.name": "pairs",
        "task.path": str(folder / f"pairs-{case.tokens}.jsonl"), "train.steps": case.steps, "train.batch_size": case.batch * ranks,
        "train.micro_batch_size": case.batch, "train.checkpointing": case.checkpointing,
        "population.seeds": case.members, "target.total": 500, **stage,
    }  # fmt: skip


def predicted(case: Case, folder: Path) -> int:
    """Predict bytes per rank from config and pairs; to be called in a process that has done nothing else."""
    config = load(None, settings(case, folder))
    import bigcircuit.prune  # noqa: F401 - what a run imports counts

    run = resolve(config, Ranks())
    work = Workload.of(run.data.splits, 1 if case.stage == "whole" else 2)
    return needs(run, work, FreeMemory.measure()).total


def predicted_afresh(case: Case, folder: Path) -> int:
    """Predict bytes per rank in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--predict", json.dumps(case), str(folder)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def measured(case: Case, folder: Path) -> int:
    """Run a case and return the most memory that any rank had allocated, bytes."""
    output = folder / "run"
    words = option_words({**settings(case, folder), "output": str(output)})
    if case.stage == "whole":
        command = [sys.executable, "-m", "bigcircuit", "prune"]
    else:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            str(free_port()),
            "launchers/prune.py",
        ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    peak = json.loads((output / "summary.json").read_text())["peak_memory_bytes"]
    output.rename(folder / f"done-{len(list(folder.glob('done-*')))}")
    return peak


def main() -> None:
    """Measure all cases and write the table; `--predict CASE FOLDER` is how `predicted_afresh` starts a process."""
    if sys.argv[1:2] == ["--predict"]:
        sys.stdout.write(str(predicted(Case(*json.loads(sys.argv[2])), Path(sys.argv[3]))))
        return
    chosen = [int(word) for word in sys.argv[1:]] or list(range(len(CASES)))
    rows = {line.rsplit("|", 4)[0]: line for line in _rows()} if sys.argv[1:] else {}
    lines = [
        f"# Peak memory of a rank on CPU, {date.today()}",
        "",
        "Predicted by `bigcircuit check` without weights against the allocated memory of the largest rank of `bigcircuit prune`, "
        f"MiB; mapped weight files are not allocated. "
        f"torch {torch.__version__}, one thread; every combination is a run of its own; stages run on two ranks.",
        "",
        "| model | dtype | pairs x tokens | P | stage | checkpointing | predicted | measured | predicted / measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size in SIZES:
            make_model(folder / size, size)
        for tokens in {case.tokens for case in CASES}:
            make_pairs(folder / f"pairs-{tokens}.jsonl", tokens)
        for case in [CASES[index] for index in chosen]:
            guess, peak = predicted_afresh(case, folder), measured(case, folder)
            row = (
                f"| {case.size} | {case.dtype} | {case.batch} x {case.tokens} | {case.members} | {case.stage} | "
                f"{'yes' if case.checkpointing else 'no'} | {guess / 2**20:.0f} | {peak / 2**20:.0f} | {guess / peak:.2f} |"
            )
            rows[row.rsplit("|", 4)[0]] = row
            OUTPUT.write_text("\n".join([*lines, *rows.values()]) + "\n")
            print(row, flush=True)  # noqa: T201


def _rows() -> list[str]:
    """Read the rows of the last table."""
    return [line for line in OUTPUT.read_text().splitlines() if line.startswith(tuple(f"| {size} " for size in SIZES))]


if __name__ == "__main__":
    main()
