"""Measure runs of large models on a machine whose memory is smaller than, or not much larger than, their weights.

    python -m benchmarks.large_cpu FOLDER_8B [FOLDER_32B] [--only NAME ...]

The folders are of `python -m benchmarks.large_models`. Runs are started as on a command line and watched from outside. One process
uses two threads; two ranks use one each. With --only, the other rows of the table stay; so does the row of a run that fails.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from benchmarks.machine import cpu_name, disk_speed, layer_entries, matmul_speed, reading_seconds, update_flops
from benchmarks.printed import MIB, predicted_bytes, proposals, rows_of, tokens_at_once
from benchmarks.watch import Seen, watch
from bigcircuit.errors import OutOfMemory
from bigcircuit.io.files import tensor_sha256
from bigcircuit.io.provenance import versions
from tests.helpers.launch import launcher_command, option_words

ROOT = Path(__file__).parents[1]
OUTPUT = Path(__file__).with_suffix(".md")
GB = 1e9
THREADS = {1: 2, 2: 1}
"""Ranks -> threads of each."""
Settings = dict[str, Any]
STREAM: Settings = {"model.weights": "stream"}
PLACEMENTS: dict[str, tuple[int, Settings]] = {
    "resident": (1, {}),
    "stream": (1, STREAM),
    **{
        stage: (2, {"deepspeed": str(ROOT / f"configs/deepspeed/{stage}.json")})
        for stage in ("zero0", "zero3", "zero3_offload_cpu", "zero3_offload_nvme")
    },
}
"""Where the weights are -> number of ranks, and the settings that place them there."""
BASE: Settings = {
    "model.dtype": "bfloat16", "task.name": "ioi", "task.size": 24, "task.split.train": 0.625, "task.split.validation": 0.125,
    "task.split.test": 0.25, "train.both_ways": False, "train.steps": 2, "train.batch_size": 4, "train.micro_batch_size": 2,
    "train.checkpointing": True, "train.validate_every": 2, "train.save_every": 1, "train.log_every": 1, "target.total": 1000,
}  # fmt: skip
FEW: Settings = {
    "task.size": 12, "task.split.train": 1 / 3, "task.split.validation": 1 / 3, "task.split.test": 1 / 3, "train.batch_size": 2,
}  # fmt: skip
"""Four pairs of each split, for the 32B model."""
SHORT = 3
"""Tokens of the short prompts."""


class Failed(Exception):
    """A run of a row ended with an error; the message is the last line of its output."""


class Bench(NamedTuple):
    """What rows are measured with."""

    models: list[Path]
    """Folder of the 8B model and, if given, of the 32B one."""
    folder: Path
    """Empty, for the runs."""
    disk: float
    """Bytes a second."""
    """Row -> digest of the gates of its run, of earlier tables too."""


class Block(NamedTuple):
    """Part of the table whose rows have the same columns."""

    title: str
    columns: list[str]
    rows: dict[str, Callable[[Bench], list[str]]]


def seconds_an_update(seen: Seen) -> float:
    """Mean seconds of the updates after the first."""
    first, *later = seen.updates.values()
    return (later[-1].seconds - first.seconds) / len(later)


def bytes_an_update(seen: Seen) -> float:
    """Mean bytes of the updates after the first that came from the disk."""
    first, *later = seen.updates.values()
    return (later[-1].bytes_read - first.bytes_read) / len(later)


def gates_digest(run: Path, step: int) -> str:
    """Return twelve hexadecimal digits of a hash of all gates of a checkpoint."""
    state = load_file(run / f"checkpoints/step-{step:06d}/state.safetensors")
    gates = {name: tensor_sha256(values) for name, values in state.items() if ".log_alpha." in name}
    assert gates
    return hashlib.sha256(json.dumps(gates, sort_keys=True).encode()).hexdigest()[:12]


def run(bench: Bench, name: str, settings: Settings, ranks: int = 1, kill_after: int | None = None) -> Seen:
    """Run `prune` in the folder of a name. Raises Failed."""
    launcher, program = ("none", ["-m", "bigcircuit", "prune"]) if ranks == 1 else ("torchrun", ["launchers/prune.py"])
    folder = bench.folder / name
    seen = watch(
        [*launcher_command(launcher, ranks), *program, *option_words({**settings, "output": str(folder)})],
        folder / "metrics.jsonl",
        root=ROOT,
        environment=_environment(ranks),
        kill_after=kill_after,
    )
    if seen.exit_code != (0 if kill_after is None else -9):
        raise Failed(_reason(seen.output))
    return seen


def checked(bench: Bench, settings: Settings, ranks: int = 1) -> str:
    """Return what `check` prints about settings. Raises Failed."""
    words = [*option_words({**settings, "output": str(bench.folder / "checked")}), "--ranks", str(ranks)]
    command = [*launcher_command("none"), "-m", "bigcircuit", "check", *words]
    seen = watch(command, bench.folder / "none", root=ROOT, environment={**_environment(ranks), "COLUMNS": "200"})
    if seen.exit_code not in (0, OutOfMemory.exit_code):
        raise Failed(_reason(seen.output))
    return seen.output


def _environment(ranks: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(THREADS[ranks]), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("bigcircuit: ")]
    return (ours or lines or ["no output"])[-1]


def placement(name: str) -> Callable[[Bench], list[str]]:
    """Return the measurement of where weights are: time, memory against the prediction, and a digest of the gates."""

    def measure(bench: Bench) -> list[str]:
        ranks, change = PLACEMENTS[name]
        settings = {**BASE, "model.path": str(bench.models[0]), **change}
        predicted = predicted_bytes(checked(bench, settings, ranks))
        seen = run(bench, name, settings, ranks)
        return [
            str(ranks), f"{seen.seconds:.0f}", f"{seconds_an_update(seen):.1f}", f"{predicted / MIB:,.0f}",
            f"{seen.anonymous / MIB:,.0f}", f"{predicted / seen.anonymous:.2f}", f"{seen.mapped / MIB:,.0f}",
            f"`{gates_digest(bench.folder / name, 2)}`",
        ]  # fmt: skip

    return measure


def members(bench: Bench) -> list[str]:
    """Measure an update of one member and of eight with prompts so short that reading the weights dominates."""
    pairs = bench.folder / "short.jsonl"
    rng = random.Random(0)
    ids = iter(rng.sample(range(10, 1000), 24 * (SHORT + 1)))
    rows = []
    for _ in range(24):
        *clean, other = (next(ids) for _ in range(SHORT + 1))
        rows.append({"clean": clean, "corrupted": [*clean[:-1], other], "answers": [[5]], "wrong_answers": [[6]]})
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {
        "task.name": "pairs",
        "task.path": str(pairs),
        "train.batch_size": 1,
        "train.steps": 3,
        "train.validate_every": 3,
    }
    settings = {
        **{k: v for k, v in BASE.items() if k != "task.size"},
        **own,
        **STREAM,
        "model.path": str(bench.models[0]),
    }
    one, eight = (run(bench, f"members-{count}", {**settings, "population.seeds": count}) for count in (1, 8))
    times = [seconds_an_update(seen) for seen in (one, eight)]
    return [
        *(f"{seconds:.1f}" for seconds in times),
        f"{times[1] / times[0]:.2f}",
        *(f"{bytes_an_update(seen) / GB:.1f}" for seen in (one, eight)),
    ]


def larger_than_memory(bench: Bench) -> list[str]:
    """Measure three updates of four members of the 32B model with the settings that `check` proposes."""
    if len(bench.models) < 2:
        raise Failed("the row needs FOLDER_32B")
    model = bench.models[1]
    settings = {
        **BASE,
        **FEW,
        "population.seeds": 4,
        "train.steps": 3,
        "train.validate_every": 3,
        "model.path": str(model),
    }
    found = proposals(checked(bench, settings))
    proposed = next((one for one in found if STREAM.items() <= one.items()), found[0] if found else {})
    settings |= proposed
    tokens = tokens_at_once(checked(bench, settings))
    seen = run(bench, "32b", settings)
    micro = min(int(settings["train.micro_batch_size"]), settings["train.batch_size"])
    config = json.loads((model / "config.json").read_text())
    speed = matmul_speed(4 * tokens, config["hidden_size"], config["intermediate_size"], THREADS[1])
    flops = update_flops(layer_entries(model), tokens * settings["train.batch_size"] // micro, 4)
    read = bytes_an_update(seen)
    bound = read / bench.disk + flops / speed
    seconds = seconds_an_update(seen)
    return [
        " ".join(f"{key} {value}" for key, value in proposed.items()) or "none", f"{seconds:.1f}", f"{read / GB:.1f}",
        f"{flops / 1e12:.1f}", f"{speed / 1e9:.0f}", f"{bound:.1f}", f"{seconds / bound:.2f}", f"{seen.anonymous / MIB:,.0f}",
    ]  # fmt: skip


def memory_of(members: int) -> Callable[[Bench], list[str]]:
    """Return the measurement of what a run of so many members of the 32B model allocates."""

    def measure(bench: Bench) -> list[str]:
        if len(bench.models) < 2:
            raise Failed("the row needs FOLDER_32B")
        own = {"population.seeds": members, "model.path": str(bench.models[1]), "task.size": 6}
        settings = {**BASE, **FEW, **STREAM, **own}
        predicted = predicted_bytes(checked(bench, settings))
        seen = run(bench, f"32b-{members}", settings)
        return [
            f"{predicted / MIB:,.0f}",
            f"{seen.anonymous / MIB:,.0f}",
            f"{predicted / seen.anonymous:.2f}",
            f"{seconds_an_update(seen):.1f}",
            f"{seen.seconds:.0f}",
        ]

    return measure


def start(bench: Bench) -> list[str]:
    """Measure the time until the first update begins, with all files in the page cache, against reading the files once."""
    files = sorted(bench.models[0].glob("*.safetensors"))
    reading_seconds(files)
    cached, size = reading_seconds(files)
    seen = run(bench, "start", {**BASE, **STREAM, "model.path": str(bench.models[0])})
    seconds = seen.updates[1].seconds - seconds_an_update(seen)
    return [f"{seconds:.1f}", f"{cached:.1f}", f"{seconds / cached:.2f}", f"{size / bench.disk:.1f}"]


def killed(bench: Bench) -> list[str]:
    """Measure a run that is killed between two checkpoints and started again, against an undisturbed one."""
    every = {"train.steps": 4, "train.save_every": 2, "train.validate_every": 4}
    settings = {**BASE, **STREAM, **every, "model.path": str(bench.models[0])}
    whole = run(bench, "undisturbed", settings)
    first = run(bench, "killed", settings, kill_after=3)
    second = run(bench, "killed", settings)
    assert re.search("resuming .* at step 2", second.output), second.output
    seconds = first.seconds + second.seconds
    gates = {gates_digest(bench.folder / name, 4) for name in ("killed", "undisturbed")}
    return [
        f"{whole.seconds:.0f}",
        f"{seconds:.0f}",
        f"{seconds / whole.seconds:.2f}",
        "yes" if len(gates) == 1 else "NO",
    ]


BLOCKS = [
    Block(
        "8B, one member: where the weights are",
        "ranks|seconds in all|an update|predicted anonymous MiB a rank|measured|predicted / measured|mapped MiB|gates".split(
            "|"
        ),
        {name: placement(name) for name in PLACEMENTS},
    ),
    Block(
        f"8B, streamed, one pair of {SHORT} tokens: members share what is read",
        "seconds an update, P = 1|P = 8|ratio|GB from the disk an update, P = 1|P = 8".split("|"),
        {"members": members},
    ),
    Block(
        "32B, four members: the settings that `check` proposes",
        "settings|seconds an update|GB from the disk|TFLOP|GFLOP/s of products|reading + products, s|ratio|anonymous MiB".split(
            "|"
        ),
        {"32b": larger_than_memory},
    ),
    Block(
        "32B, streamed, two updates, two pairs of each split: what is allocated",
        "predicted anonymous MiB|measured|predicted / measured|seconds an update|seconds in all".split("|"),
        {f"32b_p{members}": memory_of(members) for members in (1, 8)},
    ),
    Block(
        "8B, streamed, files in the page cache: time to the first update",
        "seconds|reading the files once|ratio|reading from the disk".split("|"),
        {"start": start},
    ),
    Block(
        "8B, streamed, four updates: killed after the third, a checkpoint every two",
        "undisturbed, seconds|killed and again|ratio|gates equal".split("|"),
        {"killed": killed},
    ),
]
NAMES = [name for block in BLOCKS for name in block.rows]


def page(head: str, rows: Mapping[str, str]) -> str:
    """Lay the rows out in the blocks of the table."""

    def lines() -> Iterator[str]:
        yield from ("# Large models on CPU", "", head)
        for block in BLOCKS:
            if found := [rows[name] for name in block.rows if name in rows]:
                columns = ["row", "date", *block.columns]
                yield from (
                    "",
                    f"## {block.title}",
                    "",
                    f"| {' | '.join(columns)} |",
                    f"|{'---|' * len(columns)}",
                    *found,
                )

    return "\n".join(lines()) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Measure rows and write the table; returns 1 if a run failed, which leaves its row as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="FOLDER", help="of the 8B model, and of the 32B one")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the table")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run that is watched ends too
    models = [path.resolve() for path in options.models]
    rows = rows_of(options.output.read_text(), NAMES) if options.output.exists() else {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disk = disk_speed(sorted(models[-1].glob("*.safetensors")))
        known = ", ".join(f"{name} {number}" for name, number in versions().items())
        head = (
            f"`python -m benchmarks.large_cpu`, last on {date.today()}: {known}; {cpu_name()}; the disk reads "
            f"{disk / GB:.2f} GB/s. Memory is the largest of any rank, sampled every 50 ms; MiB are 2^20 bytes, GB 10^9."
        )
        bench, failed = Bench(models, folder, disk), 0
        for name, measure in [
            (name, block.rows[name]) for block in BLOCKS for name in block.rows if name in options.only
        ]:
            try:
                cells = measure(bench)
            except Failed as error:
                failed = 1
                print(f"{name}: {error}", file=sys.stderr, flush=True)  # noqa: T201
                continue
            finally:
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            rows[name] = f"| {' | '.join([name, str(date.today()), *cells])} |"
            options.output.write_text(page(head, rows))
            print(rows[name], flush=True)  # noqa: T201
    return failed


if __name__ == "__main__":
    sys.exit(main())
