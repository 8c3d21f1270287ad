"""Open the files that `bigcircuit convert --to` writes with the tools that they are for.

    python -m benchmarks.other_tools MODEL [--tool NAME=PYTHON ...] [--only NAME ...]

The tools pin versions that exclude each other, so each is run by a Python of its own (`benchmarks/other_tools_open.py`), by default
by this one. TransformerLens and nnsight need this project beside them, the others do not. EAP-IG is imported as `eap` from a
checkout; the viewer of circuit-tracer runs under node with `d3` and `d3-jetpack` in NODE_PATH. Rows are replaced in other_tools.md.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.config.schema import ModelConfig
from bigcircuit.convert.config import ConversionSettings
from bigcircuit.convert.convert import convert_file
from bigcircuit.convert.formats import CONVERT_FORMATS
from bigcircuit.export.request import ExportRequest
from bigcircuit.export.verify import Prompts, run_masked
from bigcircuit.model.load import load_frozen
from bigcircuit.model.resolve import resolve_model
from bigcircuit.model.sites import FrozenModel
from tests.helpers.exports import random_constants, request_of, write_export

OUTPUT = Path(__file__).with_suffix(".md")
OPENER = Path(__file__).with_name("other_tools_open.py")
TOOLS = ("transformer-lens", "nnsight", "circuitkit", "eap-ig", "mib", "circuit-tracer", "llama.cpp")
_NEW = 48
"""Tokens that are continued greedily."""


def write_files(model: Path, folder: Path) -> None:
    """Write a circuit under two ablations in all formats, and what the masked model computes."""
    config = ModelConfig(path=str(model))
    frozen = load_frozen(config)
    shapes, generator = frozen.shapes, torch.Generator().manual_seed(0)
    alpha = {
        name: torch.randn(len(shapes), width, generator=generator) + 0.3
        for name, width in (
            ("head", shapes[0].heads),
            ("mlp", 1),
            ("attention_neuron", shapes[0].heads * shapes[0].head_dim),
            ("mlp_neuron", shapes[0].intermediate),
        )
    }
    masks = complete_masks({name: value > 0 for name, value in alpha.items()}, shapes)
    clean, corrupted = (
        torch.randint(3, frozen.model.config.vocab_size, (4, 16), generator=generator) for _ in range(2)
    )
    tensors = {"clean": clean, "corrupted": corrupted}
    for ablation in ("zero", "interchange"):
        path = folder / f"{ablation}.safetensors"
        metadata = {"ablation": ablation, "model": str(model), "task": "ioi"}
        Circuit(masks, alpha, metadata | {"widths": json.dumps(_widths(shapes))}).save(path)
        circuit = Circuit.load(path)
        others = {} if ablation == "zero" else {"corrupted_ids": corrupted}
        with torch.no_grad(), circuit.applied(frozen.model, **others) as masked:
            tensors[ablation] = masked(input_ids=clean, use_cache=False).logits
    for known in CONVERT_FORMATS.values():
        if known.to:
            output = folder / f"{known.to}{known.suffix}"
            settings = ConversionSettings(to=known.to, output=str(output), model=config)
            convert_file(folder / "interchange.safetensors", settings)
    tensors |= _gguf(config, folder, frozen, clean)
    save_file(tensors, folder / "expected.tensors")
    kept = {f"a{layer}.h{h}" for layer, h in masks["head"].nonzero().tolist()}
    kept |= {f"m{layer}" for layer, _ in masks["mlp"].nonzero().tolist()}
    (folder / "expected.json").write_text(json.dumps({"model": str(model), "kept": sorted(kept)}))


def _widths(shapes: Any) -> dict[str, list[int]]:
    from bigcircuit.model.granularity import GRANULARITIES

    return {name: [g.width(shape) for shape in shapes] for name, g in GRANULARITIES.items()}


def _gguf(config: ModelConfig, folder: Path, frozen: Any, prompts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Export GGUF files, also of other families with these weights, and continue prompts with the masked models."""
    resolved, found = resolve_model(config), {}
    for name, ablation in (("zero", ZERO), ("mean", random_constants(frozen.shapes))):
        circuit = Circuit.load(folder / "zero.safetensors")
        request = request_of(resolved, ablation, circuit.masks)
        write_export("gguf", request, folder / f"gguf-{name}")
        found |= _continued(name, frozen, request, prompts)
    generator = torch.Generator().manual_seed(1)
    for name in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
        base = ModelConfig(path=str(_as_other(name, frozen, Path(config.path), folder)))
        other = load_frozen(base)
        masks = Circuit.load(folder / "zero.safetensors").masks
        # Few closed nodes, because the model is made up; of a Qwen2 all heads are kept, as llama.cpp wants them.
        kept = {part: mask | (torch.rand(mask.shape, generator=generator) < 0.8) for part, mask in masks.items()}
        heads = kept["head"] | (name == "qwen2")
        closed = complete_masks({"head": heads, "mlp_neuron": kept["mlp_neuron"]}, other.shapes)
        request = request_of(resolve_model(base), ZERO, closed)
        write_export("gguf", request, folder / f"gguf-{name}")
        found |= _continued(name, other, request, prompts)
    return found


def _continued(
    name: str, frozen: FrozenModel, request: ExportRequest, prompts: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Continue prompts greedily with a masked model: tokens, and the log-probabilities by which each was chosen."""
    tokens = prompts.shape[1]
    text = run_masked(frozen, request, Prompts(prompts, tokens, _NEW))["text"]
    logits = run_masked(frozen, request, Prompts(torch.cat([prompts, text], 1), tokens, 1))["logits"]
    return {f"text.{name}": text, f"chosen.{name}": logits[:, tokens - 1 : -1].log_softmax(-1).contiguous()}


def _as_other(name: str, frozen: Any, path: Path, folder: Path) -> Path:
    """Write a model of another family with the weights of a Llama, and biases and other norms of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    known = frozen.model.config.to_dict()
    own = {} if name == "qwen2" else {"head_dim": known["head_dim"]}
    if name.startswith("gemma"):
        own |= {"query_pre_attn_scalar": known["head_dim"], "sliding_window": 16, "tie_word_embeddings": True}
    left_out = {"model_type", "architectures", "head_dim", *(["rope_parameters"] if name.startswith("gemma") else [])}
    config = AutoConfig.for_model(name, **{key: value for key, value in known.items() if key not in left_out} | own)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weights = frozen.model.state_dict()
        for key, value in model.state_dict().items():
            if key in weights:
                value.copy_(weights[key])
            else:
                value.copy_(1.5 * key.endswith("norm.weight") + 0.2 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(folder / f"base-{name}")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(path / file, folder / f"base-{name}" / file)
    return folder / f"base-{name}"


def open_files(tool: str, python: str, folder: Path) -> dict[str, Any]:
    """Open the files with a tool; returns what its process printed last, as JSON."""
    words = [python, str(OPENER), tool, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.stderr.write(done.stderr[-3000:])
        return {"version": "", "seen": f"FAILS: {(done.stderr.strip().splitlines() or ['no output'])[-1][:200]}"}
    return json.loads(lines[-1])


def save_rows(rows: dict[str, str], model: str) -> None:
    """Replace the rows of some tools in the table."""
    text = OUTPUT.read_text() if OUTPUT.exists() else ""
    known = {found[1].split(" ")[0]: found[0] for found in re.finditer(r"(?m)^\| ([^|]+?) \|.*\|$", text)}
    known |= rows
    lines = [
        "# Files of other tools, opened by them",
        "",
        f"`python -m benchmarks.other_tools`, {date.today()}, a circuit of {model} drawn at random, with neurons of its own in "
        "every head and MLP. Each tool runs in an environment of its own.",
        "",
        "| tool | what it opened | seen |",
        "|---|---|---|",
        *(known[tool] for tool in TOOLS if tool in known),
    ]
    OUTPUT.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Write the files once, and open them with each tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--only", nargs="*", choices=TOOLS, default=list(TOOLS))
    words = parser.parse_args()
    pythons = dict(one.split("=", 1) for one in words.tool)
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        write_files(words.model, Path(name))
        for tool in words.only:
            found = open_files(tool, pythons.get(tool, sys.executable), Path(name))
            rows[tool] = f"| {tool} {found['version']} | {found.get('opened', '')} | {found['seen']} |"
            sys.stdout.write(rows[tool] + "\n")
            sys.stdout.flush()
    save_rows(rows, words.model.name)
    raise SystemExit(any("FAILS" in row for row in rows.values()))


if __name__ == "__main__":
    main()
