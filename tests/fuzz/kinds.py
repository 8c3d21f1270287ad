"""Kinds of inputs: what users and other tools hand in, each made by damaging something valid, and what reads it."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from safetensors.torch import save

from bigcircuit.circuit.circuit import FORMAT, Circuit
from bigcircuit.cli import RUNS, parse_verb
from bigcircuit.config.load import dotted_keys, load
from bigcircuit.config.schema import Config, ModelConfig
from bigcircuit.convert.convert import _parse
from bigcircuit.convert.formats import recognise
from bigcircuit.data.readers.read import read_pairs
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.io import checkpoint
from bigcircuit.io.files import tensor_sha256
from bigcircuit.model.load import load_config, load_tokenizer, skeleton
from bigcircuit.model.weight_files import EMBEDDED
from bigcircuit.report.render import write_report
from bigcircuit.results.run import open_source
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.sweep.best import show_best
from bigcircuit.sweep.config import SweepSettings, load_sweep
from tests.fuzz.harness import Kind
from tests.fuzz.mutate import as_json, damaged_bytes, damaged_json, words_of
from tests.helpers import foreign_circuits
from tests.helpers.short_runs import run
from tests.helpers.sweep_dir import make_sweep

Read = Callable[[], Any]
_ROOT = Path(__file__).parents[2]
_base: dict[str, Path] = {}


def prepare(folder: Path, finished: Path | None = None, sweep: Path | None = None) -> None:
    """Make what is damaged: a finished run with its checkpoints, and a sweep. finished, sweep: those made already."""
    _base["run"] = finished or run(folder / "run").path
    _base["sweep"] = sweep or make_sweep(folder / "sweep")


@cache
def _configs() -> list[Any]:
    return [
        yaml.safe_load(path.read_text())
        for path in sorted(_ROOT.glob("configs/**/*.yaml"))
        if path.parent.name != "ray"
    ]


def _yaml(random: Random, folder: Path) -> Read:
    data = damaged_json(random, random.choice(_configs()))
    content = yaml.safe_dump(data).encode("utf-8", "surrogatepass")
    path = folder / "c.yaml"
    path.write_bytes(damaged_bytes(random, content) if random.random() < 0.5 else content)
    return lambda: load_sweep(path, {}) if b"sweep" in content else load(path)


def _words(random: Random, _: Path) -> Read:
    verb = random.choice([name for name in RUNS if name != "env"])
    options = [
        *dotted_keys(),
        *dotted_keys(SweepSettings, "sweep."),
        "config",
        "output",
        "memory",
        "ranks",
        "kl",
        "neurons",
    ]
    words = words_of(random, options, ["0.1", "3", "[head, mlp]", "true", "cuda", "ioi", "{a: b}", "runs/a", "null"])

    def read() -> None:
        command = parse_verb(verb, words)
        if SweepSettings in command.settings:
            load_sweep(None, {**command.settings[Config], **command.settings[SweepSettings]})
        elif Config in command.settings:
            load(None, command.settings[Config])

    return read


_DTYPES = [
    getattr(torch, name) for name in "bool bfloat16 float8_e4m3fn float8_e5m2 float16 float64 int64 uint8".split()
]


def _circuit(random: Random, folder: Path) -> Read:
    path = folder / "c.safetensors"
    if random.random() < 0.3:
        path.write_bytes(damaged_bytes(random, (_base["run"] / "circuit.safetensors").read_bytes()))
        return lambda: open_source(path)
    layers, heads, dim, ffn = random.randint(0, 3), random.randint(1, 3), random.randint(1, 3), random.randint(1, 5)
    widths = {"head": heads, "attention_neuron": heads * dim, "mlp_neuron": ffn, "kv_group": 1, "mlp": 1, "block": 1}
    names = random.sample(sorted(widths), random.randint(1, 4))
    tensors = {f"mask.{name}": torch.ones(layers, widths[name], dtype=torch.bool) for name in names}
    for name in random.sample(sorted(tensors), random.randint(0, 1)) + ["log_alpha.head"] * random.randint(0, 1):
        shape = [random.choice([0, 1, 2, 3, 9]) for _ in range(random.randint(0, 3))]
        tensors[name] = torch.zeros(random.choice([shape, [layers, heads]])).to(random.choice(_DTYPES))
    metadata = {
        "format": FORMAT,
        "widths": {name: [width] * layers for name, width in widths.items()},
        "sha256": {name: tensor_sha256(tensor) for name, tensor in tensors.items()},
        "scores": {"interchange": {"kl": {"mean": 0.1, "low": 0.0, "high": 0.2}}},
        "targets": {"total": 3},
        "granularities": names,
        "versions": {"torch": "2"},
        "ablation": "interchange",
    }
    if random.random() < 0.8:
        metadata = damaged_json(random, metadata)
    found = metadata.items() if isinstance(metadata, dict) else ()
    texts = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in found}
    texts = {key: text for key, text in texts.items() if "\ud800" not in key + text}
    path.write_bytes(save(tensors, texts))
    if random.random() < 0.1:
        return lambda: write_report([str(path)], folder / "page.html")
    return lambda: (open_source(path), Circuit.load(path).sizes())


@cache
def _tokenizer() -> Any:
    return load_tokenizer(ModelConfig())


def _pairs(random: Random, folder: Path) -> Read:
    rows: Sequence[Any] = [
        {
            "clean": "When Mary and John went",
            "corrupted": "When John and Mary went",
            "answers": [" to"],
            "wrong_answers": [" at"],
        },
        {"prefix": "A", "clean_prefix": "x", "patch_prefix": "y", "clean_answer": "b", "patch_answer": "c"},
        {"clean": [1, 2, 3], "corrupted": [1, 4, 3], "answers": [[5]], "wrong_answers": [[6]]},
    ]
    rows = [random.choice(rows)] * random.randint(1, 3)
    if random.random() < 0.8:
        rows = damaged_json(random, rows)
    suffix = random.choice(["jsonl", "json", "csv", "parquet"])
    path = folder / f"p.{suffix}"
    if suffix == "jsonl" and isinstance(rows, list):
        content = b"\n".join(json.dumps(row).encode() for row in rows)
    elif suffix == "csv" and rows and isinstance(rows, list) and isinstance(rows[0], dict):
        lines = [",".join(rows[0])]
        lines += [",".join(map(json.dumps, row.values())) for row in rows if isinstance(row, dict)]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    elif suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(
            pa.table({"clean": ["a b", "b a"], "corrupted": ["b a", "a b"], "answers": [["x"], ["y"]]}), path
        )
        content = path.read_bytes()
    else:
        content = json.dumps(rows).encode()
    if suffix == "parquet" or random.random() < 0.4:
        content = damaged_bytes(random, content)
    path.write_bytes(content)

    def read() -> None:
        pairs = read_pairs(str(path))
        tokenize_pairs(pairs, _tokenizer(), 256, True, 1030, [])

    return read


def _convert(random: Random, folder: Path) -> Read:
    path = folder / "graph.json"
    made = random.choice([foreign_circuits.graph(), [["embeds", "a0.h0.q"], ["a0.h0", "m0"], ["m0", "resid_post"]]])
    path.write_bytes(as_json(random, damaged_json(random, made)))

    def read() -> None:
        data = _parse(path)
        recognise(data, str(path)).read(data, foreign_circuits.SHAPES, str(path))

    return read


def _checkpoint(random: Random, folder: Path) -> Read:
    target = folder / "checkpoints"
    shutil.copytree(_base["run"] / "checkpoints", target)
    _damage_one(random, [path for path in target.rglob("*") if path.is_file()])
    return lambda: checkpoint.load_newest(target, lambda _: None)


def _damage_one(random: Random, paths: Sequence[Path]) -> None:
    path = random.choice(sorted(paths))
    content = path.read_bytes()
    if path.suffix == ".json" and random.random() < 0.8:
        path.write_bytes(as_json(random, damaged_json(random, json.loads(content))))
    elif path.suffix == ".jsonl" and random.random() < 0.8:
        lines = [json.loads(line) for line in content.splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in damaged_json(random, [lines])[:1] or [[]]))
    else:
        path.write_bytes(damaged_bytes(random, content))


def _run_folder(random: Random, folder: Path) -> Read:
    target = folder / "run"
    shutil.copytree(_base["run"], target, ignore=shutil.ignore_patterns("checkpoints", "*.html"))
    _damage_one(random, [path for path in target.iterdir() if path.suffix in (".json", ".jsonl", ".safetensors")])
    figures = folder / "figures" if random.random() < 0.1 else None
    return lambda: write_report([str(target)], folder / "page.html", figures)


def _sweep_folder(random: Random, folder: Path) -> Read:
    target = folder / "sweep"
    shutil.copytree(_base["sweep"], target, ignore=shutil.ignore_patterns("*.html", "checkpoints", "*.parquet"))
    _damage_one(random, [path for path in target.rglob("*.json")])
    return lambda: (show_best([str(target)], {"kl": 9.0}, PlainConsole()), write_report([str(target)]))


_MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "bos_token_id": None, "eos_token_id": None,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip


def _model_folder(random: Random, folder: Path) -> Read:
    config = damaged_json(random, _MODEL)
    (folder / "config.json").write_bytes(as_json(random, config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (EMBEDDED / name).read_bytes()
        (folder / name).write_bytes(damaged_bytes(random, content) if random.random() < 0.1 else content)
    model = ModelConfig(path=str(folder))
    return lambda: (load_tokenizer(model), skeleton(model, load_config(model)))


KINDS: dict[str, Kind] = {
    "YAML": _yaml,
    "words": _words,
    "circuit files": _circuit,
    "pair files": _pairs,
    "files of convert": _convert,
    "checkpoints": _checkpoint,
    "run folders": _run_folder,
    "sweep folders": _sweep_folder,
    "model folders": _model_folder,
}
"""Name -> kind."""
COSTS = {"checkpoints": 5, "run folders": 20, "sweep folders": 100}
"""Name -> how many times as long as of other kinds an input takes."""
