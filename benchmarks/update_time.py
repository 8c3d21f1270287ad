"""Measure the seconds of an update on CPU: the prediction of `bigcircuit check --time` against the updates of `prune`.

python -m benchmarks.update_time [NUMBER ...] [--large FOLDER]
(NUMBER: of the cases below; other rows of the table are kept. FOLDER: a model of gigabytes, measured with 2 pairs x 15 tokens)
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.memory import SIZES, make_model, make_pairs
from bigcircuit.config.load import load
from tests.helpers.launch import DEEPSPEED_CONFIGS, ENVIRONMENT, launcher_command, option_words

ROOT = Path(__file__).parents[1]
OUTPUT = Path(__file__).with_suffix(".md")
CONFIGS = {
    "embedded": "configs/quickstart.yaml",
    "stories260k": "configs/stories260k/pronoun_noun_name.yaml",
    "babyllama105": "configs/babyllama105/pronoun_noun_name.yaml",
}
"""Model -> config of a run with its own pairs; the others get random pairs."""


class Case(NamedTuple):
    """Combination of settings to measure."""

    model: str
    members: int
    dtype: str = "float32"
    checkpointing: bool = False
    ranks: int = 1
    """Two ranks divide the weights (ZeRO-3)."""
    tokens: int = 32
    """Of a random pair."""
    pairs: int = 8
    """Pairs of an update on each rank, all at once."""


SMALL: list[dict[str, Any]] = [
    {"members": 1},
    {"members": 4},
    {"members": 4, "dtype": "bfloat16", "checkpointing": True},
    {"members": 1, "ranks": 2},
]
LARGER: list[dict[str, Any]] = [
    {"members": 1},
    {"members": 4},
    {"members": 1, "checkpointing": True},
    {"members": 1, "dtype": "bfloat16"},
    {"members": 4, "dtype": "bfloat16", "checkpointing": True},
    {"members": 1, "ranks": 2},
    {"members": 4, "dtype": "bfloat16", "ranks": 2},
]
CASES = [
    *(Case(model=model, **variant) for model in CONFIGS for variant in SMALL),
    *(Case(model=model, **variant) for model in SIZES for variant in LARGER),
]


def settings(case: Case, folder: Path) -> dict[str, Any]:
    """Return the dotted settings of a case, but for its config file."""
    found: dict[str, Any] = {
        "model.dtype": case.dtype, "train.steps": 4 if case.model not in CONFIGS else 30, "train.micro_batch_size": case.pairs,
        "train.batch_size": case.pairs * case.ranks, "train.checkpointing": case.checkpointing, "population.seeds": case.members,
    }  # fmt: skip
    if case.model not in CONFIGS:
        model = folder / case.model if case.model in SIZES else Path(case.model)
        pairs = folder / f"pairs-{case.tokens}.jsonl"
        found |= {"model.path": str(model), "task.name": "pairs", "task.path": str(pairs), "target.total": 500}
    if Path(case.model).is_absolute():  # every pass takes long: as few as there can be
        split = {"train": 0.4, "validation": 0.0, "test": 0.6}
        found |= {
            "train.steps": 3,
            "train.both_ways": False,
            **{f"task.split.{name}": share for name, share in split.items()},
        }
    if case.ranks > 1:
        found["deepspeed"] = str(DEEPSPEED_CONFIGS / "zero3.json")
    return found


def words(case: Case, folder: Path) -> list[str]:
    """Return the words of `bigcircuit prune` for a case."""
    config = ["--config", CONFIGS[case.model]] if case.model in CONFIGS else []
    return [*config, *option_words({**settings(case, folder), "output": str(folder / f"run-{time.time_ns()}")})]


def predict(case: Case, folder: Path) -> tuple[float, float, float]:
    """Predict, in this process, seconds an update and a run; the third are the seconds that the prediction took."""
    config = load(CONFIGS.get(case.model), settings(case, folder))
    from bigcircuit.distributed.ranks import Ranks
    from bigcircuit.memory.estimate import Workload
    from bigcircuit.memory.fit import needs
    from bigcircuit.memory.update_time import predict_time
    from bigcircuit.runtime.host_memory import FreeMemory
    from bigcircuit.train.resolve import resolve

    run, memory = resolve(config, Ranks()), FreeMemory.measure()
    work = Workload.of(run.data.splits, case.ranks)
    parts, started = needs(run, work, memory), time.perf_counter()
    found = predict_time(run, work, memory, parts)
    return found.update, found.total, time.perf_counter() - started


def prune_timed(output: Path, arguments: list[str]) -> None:
    """Run `bigcircuit prune`, and write the seconds that this rank computes in an update, and those of the run."""
    import bigcircuit.prune as module
    from bigcircuit.cli import run_prune

    taken, plain = [], module.update

    def timed(*args: Any) -> Any:
        started = time.process_time()
        logged = plain(*args)
        taken.append(time.process_time() - started)
        return logged

    module.update = timed
    started = time.perf_counter()
    run_prune(arguments)
    output.with_suffix(f".{taken[0]}").write_text(
        json.dumps([statistics.median(taken[1:]), time.perf_counter() - started])
    )


def start(*arguments: str, ranks: int = 1) -> str:
    """Run this module in a new process, or on ranks, and return what it prints."""
    command = [
        *launcher_command("torchrun" if ranks > 1 else "none", ranks),
        "-m",
        "benchmarks.update_time",
        *arguments,
    ]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def measured(case: Case, folder: Path) -> tuple[float, float]:
    """Run a case and return seconds an update and of the run, of the rank that was slowest."""
    result = folder / f"seconds-{time.time_ns()}"
    start("--prune", str(result), *words(case, folder), ranks=case.ranks)
    update, whole = zip(*(json.loads(path.read_text()) for path in folder.glob(f"{result.name}.*")), strict=True)
    return max(update), max(whole)


def main() -> None:
    """Measure all cases and write the table; `--predict` and `--prune` are how new processes start."""
    if sys.argv[1:2] == ["--predict"]:
        sys.stdout.write(json.dumps(predict(Case(*json.loads(sys.argv[2])), Path(sys.argv[3]))))
        return
    if sys.argv[1:2] == ["--prune"]:
        prune_timed(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", type=int, nargs="*")
    parser.add_argument("--large")
    given = parser.parse_args()
    chosen = [CASES[number] for number in given.numbers] or ([] if given.large else CASES)
    if given.large:
        chosen.append(Case(model=given.large, members=1, dtype="bfloat16", tokens=15, pairs=2))
    old = OUTPUT.read_text().splitlines() if OUTPUT.exists() and (given.numbers or given.large) else []
    rows = {_key(line): line for line in old if line.startswith("| ") and not line.startswith("| model")}
    lines = [
        f"# Seconds of an update on CPU, {date.today()}",
        "",
        "Predicted by `bigcircuit check --time`, which loads no weights, against the updates of `bigcircuit prune`: the median of "
        "the seconds of processor that a rank uses, one core for each, because other programs use the 2 cores as well. Two ranks "
        f"divide the weights (ZeRO-3). torch {torch.__version__}, one thread a rank. The last columns: seconds that the "
        "prediction took, and the whole run on the clock, predicted / measured (a run also loads libraries and writes its page, "
        "about 5 s, and waits for the cores).",
        "",
        "| model | dtype | pairs x tokens | P | ranks | checkpointing | predicted | measured | predicted / measured | took | run |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size in SIZES:
            make_model(folder / size, size)
        for tokens in {case.tokens for case in chosen}:
            make_pairs(folder / f"pairs-{tokens}.jsonl", tokens, count=12 if tokens < 32 else 24)
        for case in chosen:
            guess, whole, took = json.loads(start("--predict", json.dumps(case), str(folder)))
            seconds, run = measured(case, folder)
            pairs = f"{case.pairs} x {case.tokens}" if case.model not in CONFIGS else f"{case.pairs}"
            row = (
                f"| {Path(case.model).name} | {case.dtype} | {pairs} | "
                f"{case.members} | {case.ranks} | {'yes' if case.checkpointing else 'no'} | {guess:.3g} | {seconds:.3g} | "
                f"{guess / seconds:.2f} | {took:.1f} | {whole:.0f} / {run:.0f} |"
            )
            rows[_key(row)] = row
            OUTPUT.write_text("\n".join([*lines, *rows.values()]) + "\n")
            print(row, flush=True)  # noqa: T201


def _key(row: str) -> str:
    """The columns that tell cases apart."""
    return "|".join(row.split("|")[:7])


if __name__ == "__main__":
    main()
