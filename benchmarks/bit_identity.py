"""Short runs of everything that computes a number, reduced to hashes: the same before and after a change that moves code.

    python -m benchmarks.bit_identity record --output before.json [--checkout DIR] [--only prune_zero,sweep]
    python -m benchmarks.bit_identity compare before.json after.json
    python -m benchmarks.bit_identity sample --output tests/benchmarks/bit_identity.json

The first uses only the command line, so any checkout can be recorded. A record holds, by case, the sha256 of every circuit file
and of all numbers in the JSON, JSONL and CSV files of its folder, without what differs from run to run (seconds, memory, paths,
versions). Bits depend on the machine and on the versions of torch, so only records of one machine can be compared. A sample
is four of the cases, with the masks and the main scores beside the hashes, so that it tells something on other machines too.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VOLATILE = (
    "seconds",
    "peak_memory_bytes",
    "versions",
    "threads",
    "command",
    "file",
    "path",
    "output",
    "saved",
    "verdict",
    "sha256",
    "settings",
)
"""Keys and columns that differ from run to run, or name files whose content is hashed by itself."""
SHORT = {
    "task.name": "ioi",
    "task.size": 80,
    "train.steps": 12,
    "train.batch_size": 8,
    "train.log_every": 4,
    "train.validate_every": 6,
    "train.save_every": 6,
    "ablation.finish_steps": 4,
}
TOTAL = {"target.total": 200}
PENALTY = {"penalty.mlp_neuron": 2.0, "penalty.head": 1.0}
PRUNES: dict[str, dict[str, Any]] = {
    "hard_concrete": PENALTY,
    "straight_through": {**PENALTY, "gates.parametrisation": "straight_through"},
    "dual": {**TOTAL, "gates.parametrisation": "hard_concrete"},
    "sigmoid_top_k": TOTAL,
    "straight_through_top_k": {**TOTAL, "target.head": 12, "gates.parametrisation": "straight_through_top_k"},
    "sampled_sizes": {**TOTAL, "gates.sampled_sizes": True},
    "zero": {**TOTAL, "ablation.kind": "zero"},
    "mean": {**TOTAL, "ablation.kind": "mean", "ablation.prompts": "both"},
    "mean_per_position": {**TOTAL, "ablation.kind": "mean", "ablation.per_position": True},
    "optimal": {**TOTAL, "ablation.kind": "optimal"},
    "warm_start": {**TOTAL, "gates.warm_start": "integrated_gradients", "train.checkpointing": True},
    "granularities": {
        "gates.granularities": "[block, attention, mlp, kv_group, head, attention_neuron, mlp_neuron, mlp_output]",
        "penalty.mlp_output": 0.5,
        "penalty.kv_group": 0.5,
    },
    "population": {
        **PENALTY,
        "population.members": "[{penalty.head: 0.2}, {train.seed: 3, train.steps: 9}, {train.hinge: 0.5}]",
    },
    "left_padding": {**TOTAL, "task.padding": "left", "task.keep": "solved", "task.split.by": "template"},
}
RANKS = {"ranks": TOTAL, "zero3": {**PENALTY, "population.seeds": 2, "deepspeed": "configs/deepspeed/zero3.json"}}
SWEEP = """
sweep: {search: grid, slots: 2, workers: 1, cpus: 1, space: {penalty.mlp_neuron: [0.5, 4.0], train.seed: [0, 1]}}
"""
GRAPH = {
    "cfg": {"n_layers": 4, "n_heads": 8, "d_model": 128},
    "nodes": {"input": True, "a0.h1": True, "m1": True, "a2.h3": True, "logits": True},
    "edges": {
        "input->a0.h1<q>": True, "a0.h1->m1": True, "m1->a2.h3<v>": True, "a2.h3->logits": True, "input->m0": False,
    },
}  # fmt: skip


SAMPLE: dict[str, dict[str, Any]] = {
    "hard_concrete": {"penalty.mlp_neuron": 10.0, "penalty.head": 5.0, "gates.init_spread": 1.0, "train.lr": 0.5},
    "sigmoid_top_k": TOTAL,
    "optimal": {**TOTAL, "ablation.kind": "optimal"},
}
"""The prunes of a sample; `convert` is the fourth case."""
MAIN_SCORES = ("kl", "cross_entropy", "logit_difference", "probability_difference")


def words(settings: Mapping[str, Any]) -> list[str]:
    """Dotted overrides of the short run as command-line words."""
    return [word for key, value in {**SHORT, **settings}.items() for word in (f"--{key}", _text(value))]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def record(checkout: Path, folder: Path, only: list[str]) -> dict[str, dict[str, str]]:
    """Run all cases of a checkout below `folder`; returns file -> hash by case."""
    found: dict[str, dict[str, str]] = {}
    for name, command in _commands(folder):
        if only and name not in only:
            continue
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"{name}: exit code {result.returncode}\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
        found[name] = hashes(folder / name)
        sys.stderr.write(f"{name}: {len(found[name])} files\n")
    return found


def _commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and command of every case; each writes the folder of its name. Later ones read folders of earlier ones."""
    bigcircuit = [sys.executable, "-m", "bigcircuit"]
    for name, settings in PRUNES.items():
        yield name, [*bigcircuit, "prune", *words(settings), "--output", str(folder / name)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, settings in RANKS.items():
        yield name, [*torchrun, "launchers/prune.py", *words(settings), "--output", str(folder / name)]
    (folder / "sweep.yaml").write_text(SWEEP)
    yield (
        "sweep",
        [*bigcircuit, "sweep", "--config", str(folder / "sweep.yaml"), *words({}), "--output", str(folder / "sweep")],
    )
    cheap = ["--draws", "4", "--groups", "12", "--partial_draws", "1"]
    for name, run in (
        ("evaluate", "optimal"),
        ("evaluate_population", "population"),
        ("evaluate_templates", "left_padding"),
    ):
        # By name: `all` is one more whenever a kind is added.
        ablations = "interchange,zero,mean,mean_per_position,optimal" if name == "evaluate" else "zero,interchange"
        yield (
            name,
            [
                *bigcircuit,
                "evaluate",
                str(folder / run),
                "--ablations",
                ablations,
                *cheap,
                "--output",
                str(folder / name),
            ],
        )
    both = [str(folder / "population"), str(folder / "zero")]
    yield "compare", [*bigcircuit, "compare", *both, "--save", "all", "--output", str(folder / "compare")]
    (folder / "graph.json").write_text(json.dumps(GRAPH))
    converted = str(folder / "convert" / "graph.safetensors")
    (folder / "convert").mkdir(exist_ok=True)
    yield (
        "convert",
        [*bigcircuit, "convert", str(folder / "graph.json"), "--model.path", "embedded", "--output", converted],
    )


def sample(folder: Path) -> dict[str, Any]:
    """Run the four cases of a sample in this process; returns `machine`, and by case the hashes, masks and main scores."""
    from bigcircuit import cli

    commands = {
        name: (cli.run_prune, [*words(settings), "--output", str(folder / name)]) for name, settings in SAMPLE.items()
    }
    (folder / "convert").mkdir(parents=True)
    (folder / "graph.json").write_text(json.dumps(GRAPH))
    output = str(folder / "convert/graph.safetensors")
    convert = [str(folder / "graph.json"), "--model.path", "embedded", "--output", output]
    cases = {}
    for name, (verb, command) in {**commands, "convert": (cli.run_convert, convert)}.items():
        if code := cli.answer(verb, command):
            raise SystemExit(f"{name}: exit code {code}")
        tensors = {
            str(path.relative_to(folder / name)): tensors_sha256(path)
            for path in folder.glob(f"{name}/**/*.safetensors")
        }
        cases[name] = {"hashes": hashes(folder / name) | tensors, **main_numbers(folder / name)}
    return {"machine": machine(), "cases": cases}


def tensors_sha256(path: Path) -> str:
    """Hash the tensors of a safetensors file by name and value, without metadata, which name versions of libraries."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def machine() -> dict[str, str]:
    """What the bits of a result depend on: the build of torch, the vector instructions it uses, and the processor."""
    import torch

    info = Path("/proc/cpuinfo").read_text().split("\n\n")[0] if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    known = {name.strip(): value.strip() for name, value in fields.items()}
    processor = [known.get("model name", platform.processor()), known.get("cpu family", ""), known.get("model", "")]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "capability": capability, "processor": " ".join(processor).strip()}


def main_numbers(folder: Path) -> dict[str, Any]:
    """Read the circuit of a folder: numbers of kept nodes, kept neurons layer by layer in hexadecimal, mean scores if any."""
    from bigcircuit.circuit.circuit import Circuit

    circuit = Circuit.load(next(folder.glob("*.safetensors")))
    leaves = ("attention_neuron", "mlp_neuron")
    found: dict[str, Any] = {"kept": circuit.sizes(), "masks": {name: to_hex(circuit.masks[name]) for name in leaves}}
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        rows = {"circuit": summary["members"][0]["scores"], "empty": summary["empty"], "full": summary["full"]}
        found["scores"] = {f"{row}.{name}": rows[row][name]["mean"] for row in rows for name in MAIN_SCORES}
    return found


def to_hex(mask: Any) -> list[str]:
    """Write each row of a bool tensor [L, n] as a hexadecimal number."""
    return [f"{int(''.join(map(str, row)), 2):x}" for row in mask.int().tolist()]


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every circuit file, and of the lasting content of every JSON, JSONL and CSV file, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix in (".json", ".jsonl", ".csv") and path.name not in (
            "config.json",
            "state.json",
            "sweep.json",
        ):
            found[name] = hashlib.sha256(json.dumps(_lasting(_content(path)), sort_keys=True).encode()).hexdigest()
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".csv":
        return list(csv.DictReader(path.read_text().splitlines()))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(one) for key, one in value.items() if key not in VOLATILE}
    return [_lasting(one) for one in value] if isinstance(value, list) else value


def differences(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for every file of a case that both records hold and that is not the same in both."""
    return [
        f"{case}: {name} {'is missing' if name not in after[case] or name not in before[case] else 'differs'}"
        for case in before
        if case in after
        for name in sorted(before[case].keys() | after[case].keys())
        if before[case].get(name) != after[case].get(name)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("--output", type=Path, required=True)
    recording.add_argument("--checkout", type=Path, default=ROOT)
    recording.add_argument("--only", default="")
    sampling = verbs.add_parser("sample")
    sampling.add_argument("--output", type=Path, required=True)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("records", type=Path, nargs=2)
    arguments = parser.parse_args()
    if arguments.verb == "record":
        with tempfile.TemporaryDirectory() as folder:
            only = arguments.only.split(",") if arguments.only else []
            found = record(arguments.checkout.resolve(), Path(folder), only)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
        return
    if arguments.verb == "sample":
        with tempfile.TemporaryDirectory() as folder:
            found_here = sample(Path(folder))
        arguments.output.write_text(json.dumps(found_here, indent=1) + "\n")
        return
    before, after = (json.loads(path.read_text()) for path in arguments.records)
    different = differences(before, after)
    cases = before.keys() & after.keys()
    same = sum(len(before[case]) for case in cases) - len(different)
    last = f"{same} files of {len(cases)} cases are equal, {len(different)} are not"
    sys.stdout.write("\n".join([*different, last]) + "\n")
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
