"""Kinds of inputs: what users and other tools hand in, each made by damaging something valid, and what reads it."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save

from bigcircuit.circuit.circuit import FORMAT, Circuit
from bigcircuit.cli import RUNS, parse_verb
from bigcircuit.config.load import dotted_keys, load
from bigcircuit.config.schema import Config, ModelConfig
from bigcircuit.convert.config import ConversionSettings
from bigcircuit.convert.convert import convert_file
from bigcircuit.convert.formats import CONVERT_FORMATS
from bigcircuit.data.dataset import make_pairs
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.compare import compare_circuits
from bigcircuit.evaluation.config import ComparisonSettings, EvaluationSettings, validated
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.export.config import ExportSettings
from bigcircuit.io import checkpoint
from bigcircuit.io.files import tensor_sha256
from bigcircuit.model.load import load_tokenizer
from bigcircuit.report.render import write_report
from bigcircuit.results.run import open_source
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.sweep.best import show_best
from bigcircuit.sweep.config import SweepSettings, load_sweep
from tests.fuzz import model_kinds
from tests.fuzz.harness import Kind
from tests.fuzz.mutate import as_json, damaged_bytes, damaged_json, damaged_one, words_of
from tests.helpers import foreign_circuits
from tests.helpers.chat_models import TEMPLATES, chat_tokenizer
from tests.helpers.short_runs import FAST, run
from tests.helpers.sweep_dir import make_sweep

Read = Callable[[], Any]
_ROOT = Path(__file__).parents[2]
_base: dict[str, Path] = {}


def prepare(folder: Path, finished: Path | None = None, sweep: Path | None = None) -> None:
    """Make what is damaged: a finished run with its checkpoints, evaluated and compared, and a sweep; models; foreign circuits.

    finished, sweep: those made already. What an earlier call has made in the folder is used again.
    """
    evaluated, foreign = folder / "evaluated", folder / "foreign"
    _base.update(run=finished or folder / "run", sweep=sweep or folder / "sweep", evaluated=evaluated, foreign=foreign)
    _base["models"] = model_kinds.prepare(folder / "models")
    if foreign.exists():
        return
    if finished is None:
        run(folder / "run")
    if sweep is None:
        make_sweep(folder / "sweep")
    shutil.copytree(_base["run"], evaluated, ignore=shutil.ignore_patterns("checkpoints", "*.html"))
    shutil.copy(evaluated / "circuit.safetensors", evaluated / "again.safetensors")
    evaluate_circuits([str(evaluated)], EvaluationSettings(ablations=("interchange", "zero"), **FAST), Ranks())
    circuits = [str(evaluated / f"{name}.safetensors") for name in ("circuit", "again")]
    compare_circuits(circuits, ComparisonSettings(output=str(evaluated)), PlainConsole())
    foreign.mkdir()
    for known in CONVERT_FORMATS.values():
        if known.write is not None:
            target = foreign / f"circuit-{known.to}{known.suffix}"
            convert_file(evaluated / "circuit.safetensors", ConversionSettings(to=known.to, output=str(target)))


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
        for section in (EvaluationSettings, ComparisonSettings, ExportSettings, ConversionSettings):
            if section in command.settings:
                validated(section, command.settings[section])

    return read


_DTYPES = [
    getattr(torch, name) for name in "bool bfloat16 float8_e4m3fn float8_e5m2 float16 float64 int64 uint8".split()
]


def _circuit(random: Random, folder: Path) -> Read:
    path = _circuit_file(random, folder)
    if random.random() < 0.1:
        return lambda: write_report([str(path)], folder / "page.html")
    return lambda: (open_source(path), Circuit.load(path).sizes())


def _circuit_file(random: Random, folder: Path) -> Path:
    path = folder / "c.safetensors"
    if random.random() < 0.3:
        path.write_bytes(damaged_bytes(random, (_base["run"] / "circuit.safetensors").read_bytes()))
        return path
    layers, heads, dim, ffn = random.randint(0, 3), random.randint(1, 3), random.randint(1, 3), random.randint(1, 5)
    widths = {"head": heads, "attention_neuron": heads * dim, "mlp_neuron": ffn, "kv_group": 1, "mlp": 1, "block": 1}
    names = random.sample(sorted(widths), random.randint(1, 4))
    tensors = {f"mask.{name}": torch.ones(layers, widths[name], dtype=torch.bool) for name in names}
    for name in random.sample(sorted(tensors), random.randint(0, 1)) + ["log_alpha.head"] * random.randint(0, 1):
        shape = [random.choice([0, 1, 2, 3, 9]) for _ in range(random.randint(0, 3))]
        tensors[name] = torch.zeros(random.choice([shape, [layers, heads]])).to(random.choice(_DTYPES))
    if random.random() < 0.2:
        tensors["extra.head_score"] = torch.zeros(random.choice([[layers, heads], [1, 1]]))
    metadata = {
        "format": FORMAT,
        "widths": {name: [width] * layers for name, width in widths.items()},
        "sha256": {name: tensor_sha256(tensor) for name, tensor in tensors.items()},
        "scores": {"interchange": {"kl": {"mean": 0.1, "low": 0.0, "high": 0.2}}},
        "targets": {"total": 3},
        "granularities": names,
        "versions": {"torch": "2"},
        "ablation": "interchange",
        "model": "gpt2",
        "task": "ioi",
    }
    if random.random() < 0.8:
        metadata = damaged_json(random, metadata)
    found = metadata.items() if isinstance(metadata, dict) else ()
    texts = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in found}
    texts = {key: text for key, text in texts.items() if "\ud800" not in key + text}
    path.write_bytes(save(tensors, texts))
    return path


def _other_formats(random: Random, folder: Path) -> Read:
    path = _circuit_file(random, folder)
    settings = ConversionSettings(to=random.choice([one.to for one in CONVERT_FORMATS.values() if one.write]))
    return lambda: convert_file(path, settings)


@cache
def _tokenizer(template: str | None = None) -> Any:
    return load_tokenizer(ModelConfig()) if template is None else chat_tokenizer(TEMPLATES[template])


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
    path = _pair_file(random, folder, random.choice(rows))
    return lambda: _read_pairs(path, {}, _tokenizer())


def _chat(random: Random, folder: Path) -> Read:
    first, second = ([{"role": "user", "content": text}] for text in ("Is a whale a fish?", "Is a trout a fish?"))
    answers = {"answers": ["No"], "wrong_answers": ["Yes"]}
    reply = [{"role": "assistant", "content": "The answer is"}]
    rows: Sequence[Any] = [
        {"clean": first, "corrupted": second, **answers},
        {"messages": first + reply, "corrupted_messages": second + reply, **answers},
        {"clean": [{"role": "system", "content": "Be brief."}, *first], "corrupted": second, **answers},
    ]
    path = _pair_file(random, folder, random.choice(rows))
    chat = {"system": "Be kind.", "prefix": "I", "arguments": {"enable_thinking": False}, "text": "user"}
    settings = {f"task.chat.{name}": chat[name] for name in random.sample(sorted(chat), random.randint(0, 2))}
    template = random.choice(sorted(TEMPLATES))
    return lambda: _read_pairs(path, settings, _tokenizer(template))


def _pair_file(random: Random, folder: Path, row: Any) -> Path:
    rows: Any = [row] * random.randint(1, 3)
    if random.random() < 0.8:
        rows = damaged_json(random, rows)
    suffix = random.choice(["jsonl", "json", "csv", "parquet"])
    path = folder / f"p.{suffix}"
    if suffix == "jsonl" and isinstance(rows, list):
        content = b"\n".join(json.dumps(row).encode() for row in rows)
    elif suffix == "csv" and rows and isinstance(rows, list) and isinstance(rows[0], dict):
        text = io.StringIO()
        csv.writer(text).writerows([rows[0], *(map(json.dumps, one.values()) for one in rows if isinstance(one, dict))])
        content = text.getvalue().encode("utf-8", "surrogatepass")
    elif suffix == "parquet":
        pq.write_table(pa.table({name: [value, value] for name, value in row.items()}), path)
        content = path.read_bytes()
    else:
        content = json.dumps(rows).encode()
    if suffix == "parquet" or random.random() < 0.4:
        content = damaged_bytes(random, content)
    path.write_bytes(content)
    return path


def _read_pairs(path: Path, settings: dict[str, Any], tokenizer: Any) -> None:
    task = load(None, {"task.name": "pairs", "task.path": str(path), "target.total": 0.1, **settings}).task
    tokenize_pairs(make_pairs(task, tokenizer, []), tokenizer, 256, True, 1030, [])


def _convert(random: Random, folder: Path) -> Read:
    settings = ConversionSettings(model=ModelConfig(path=str(_base["models"] / "plain")))
    if random.random() < 0.5:
        path = folder / "graph.json"
        edges = [["embeds", "a0.h0.q"], ["a0.h0", "m0"], ["m0", "resid_post"]]
        made = random.choice([foreign_circuits.graph(), edges])
        path.write_bytes(as_json(random, damaged_json(random, made)))
        return lambda: convert_file(path, settings)
    target = folder / "foreign"
    shutil.copytree(_base["foreign"], target)
    path = damaged_one(random, [path for path in target.rglob("*") if path.is_file()])
    return lambda: convert_file(path, ConversionSettings())


def _checkpoint(random: Random, folder: Path) -> Read:
    target = folder / "checkpoints"
    shutil.copytree(_base["run"] / "checkpoints", target)
    damaged_one(random, [path for path in target.rglob("*") if path.is_file()])
    return lambda: checkpoint.load_newest(target, lambda _: None)


def _run_folder(random: Random, folder: Path) -> Read:
    target = folder / "run"
    shutil.copytree(_base["run"], target, ignore=shutil.ignore_patterns("checkpoints", "*.html"))
    damaged_one(random, [path for path in target.iterdir() if path.suffix in (".json", ".jsonl", ".safetensors")])
    figures = folder / "figures" if random.random() < 0.1 else None
    return lambda: write_report([str(target)], folder / "page.html", figures)


def _sweep_folder(random: Random, folder: Path) -> Read:
    target = folder / "sweep"
    shutil.copytree(_base["sweep"], target, ignore=shutil.ignore_patterns("*.html", "checkpoints", "*.parquet"))
    damaged_one(random, [path for path in target.rglob("*.json")])
    return lambda: (show_best([str(target)], {"kl": 9.0}, PlainConsole()), write_report([str(target)]))


def _evaluation(random: Random, folder: Path) -> Read:
    target = folder / "evaluated"
    shutil.copytree(_base["evaluated"], target)
    if random.random() < 0.5:
        (target / "summary.json").unlink()
    if random.random() < 0.2:
        (target / "circuit.safetensors").unlink()
    damaged_one(random, [target / f"{name}.json" for name in ("evaluation", "evaluation", "comparison")])
    figures = folder / "figures" if random.random() < 0.1 else None
    return lambda: write_report([str(target)], folder / "page.html", figures)


KINDS: dict[str, Kind] = {
    "YAML": _yaml,
    "words": _words,
    "circuit files": _circuit,
    "pair files": _pairs,
    "chat pair files": _chat,
    "files of convert": _convert,
    "convert --to": _other_formats,
    "checkpoints": _checkpoint,
    "run folders": _run_folder,
    "evaluations": _evaluation,
    "sweep folders": _sweep_folder,
    **model_kinds.KINDS,
}
"""Name -> kind."""
COSTS = {"checkpoints": 5, "run folders": 20, "evaluations": 20, "sweep folders": 100}
"""Name -> how many times as long as of other kinds an input takes."""
