"""Measure exports: size and speed of a smaller model, and time and memory of writing a large one.

    python -m benchmarks.export speed              Llama of 46M parameters, 25% of the site neurons
    python -m benchmarks.export large FOLDER OUT   a folder of bfloat16 weights (`python -m benchmarks.large_models`)

Circuits are drawn at random: a quarter of the heads and of the MLP neurons, other numbers in every layer. What is written below OUT
is removed again. Each part replaces its table in benchmarks/export.md.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from benchmarks.machine import cpu_name
from benchmarks.step_time import make_model
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.config.schema import ModelConfig
from bigcircuit.gates.discretise import Masks
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.granularity import LayerShape
from bigcircuit.model.load import skeleton

OUTPUT = Path(__file__).with_suffix(".md")
SHARE = 0.25
_EXPORT = """
import json, resource, sys, time
from bigcircuit.runtime.host_memory import watch_memory, allocated_memory, _Watch
watch_memory()
from bigcircuit.cli import answer, run_export
start, before = time.perf_counter(), allocated_memory()
code = answer(run_export, sys.argv[2:])
found = {"seconds": time.perf_counter() - start, "peak": _Watch.peak, "code": code}
found["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
open(sys.argv[1], "w").write(json.dumps(found))
"""


def uneven_circuit(shapes: tuple[LayerShape, ...], share: float) -> Masks:
    """Draw masks of whole heads and of MLP neurons: a share of all of the model, from half to one and a half of it in a layer."""
    generator = torch.Generator().manual_seed(0)
    layers, shape = len(shapes), shapes[0]
    drawn = {}
    for name, width in (("head", shape.heads), ("mlp_neuron", shape.intermediate)):
        own = torch.linspace(0.5, 1.5, layers)[torch.randperm(layers, generator=generator)] * share * width
        counts = own.round().long().clamp(min=1)
        order = torch.rand(layers, width, generator=generator).argsort(1).argsort(1)
        drawn[name] = order < counts.unsqueeze(1)
    return complete_masks(drawn, shapes)


def save_circuit(model: Path, path: Path) -> Masks:
    """Write a circuit of a model folder under zero ablation."""
    masks = uneven_circuit(skeleton(ModelConfig(path=str(model))).shapes, SHARE)
    Circuit(masks, {}, {"ablation": "zero"}).save(path)
    return masks


def export(scratch: Path, *words: str) -> dict[str, float]:
    """Run `bigcircuit export` in a process of its own. Returns seconds, and the peaks of allocated and of resident
    memory in bytes; the resident includes pages of mapped weight files, which the system may drop."""
    report = scratch / "report.json"
    subprocess.run([sys.executable, "-c", _EXPORT, str(report), *words], check=True)
    found = json.loads(report.read_text())
    assert found["code"] == 0
    return found


def speed() -> list[str]:
    """Export the Llama of 46M parameters in the two smaller formats and read what the command measured."""
    lines = [
        "| format | parameters | bytes | prefill 512, tokens/s (base) | x | decode, tokens/s (base) | x | logits differ by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_model().model.save_pretrained(scratch / "model")
        masks = save_circuit(scratch / "model", scratch / "circuit.safetensors")
        kept = int(masks["attention_neuron"].sum() + masks["mlp_neuron"].sum())
        total = sum(masks[name].numel() for name in ("attention_neuron", "mlp_neuron"))
        for one in ("compact", "uniform"):
            out = scratch / one
            words = [str(scratch / "circuit.safetensors"), "--config", str(scratch / "config.yaml"), "--format", one]
            (scratch / "config.yaml").write_text(json.dumps({"model": {"path": str(scratch / "model")}}))
            export(scratch, *words, "--output", str(out))
            found = json.loads((out / "export.json").read_text())
            rates = found["speed"]
            cells = [
                f"{rates['exported'][what]:,.0f} ({rates['base'][what]:,.0f}) | {rates['exported'][what] / rates['base'][what]:.2f}"
                for what in ("prefill", "decode")
            ]
            ratio = {what: found[what] / found[f"base_{what}"] for what in ("parameters", "bytes")}
            lines.append(
                f"| {one} | {ratio['parameters']:.2f} x | {ratio['bytes']:.2f} x | {cells[0]} | {cells[1]} | "
                f"{found['verification']['largest_difference']:.1g} |"
            )
    head = f"Llama of 46M parameters, {kept / total:.0%} of the site neurons kept, batch 1, {torch.get_num_threads()} thread(s)."
    return [head, "", *lines]


def large(folder: Path, out: Path) -> list[str]:
    """Copy a folder, and export circuits of it in two formats, each timed until the bytes are on the disk."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    size = sum(path.stat().st_size for path in files)
    fingerprint(ModelConfig(path=str(folder)))  # as a run has done before: hashes are remembered
    copied = copy_seconds(files, out / "copy")
    lines = [
        f"{folder.name}, {size / 1e9:.1f} GB in bfloat16; copying it took {copied:.0f} s.",
        "",
        "| format | GB written | seconds | x the copy | peak allocated memory, GiB | peak resident memory, GiB |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        save_circuit(folder, scratch / "circuit.safetensors")
        (scratch / "config.yaml").write_text(json.dumps({"model": {"path": str(folder), "dtype": "bfloat16"}}))
        for one in ("compact", "zeroed"):
            target = out / one
            words = [str(scratch / "circuit.safetensors"), "--config", str(scratch / "config.yaml"), "--format", one]
            forget(files)
            found = export(scratch, *words, "--output", str(target), "--verify", "false", "--speed", "false")
            written = sum(path.stat().st_size for path in target.iterdir())
            shutil.rmtree(target)
            lines.append(
                f"| {one} | {written / 1e9:.1f} | {found['seconds']:.0f} | {found['seconds'] / copied:.2f} | "
                f"{found['peak'] / 2**30:.2f} | {found['resident'] / 2**30:.2f} |"
            )
    return lines


def copy_seconds(files: list[Path], target: Path) -> float:
    """Copy files, wait until they are on the disk, and remove the copy."""
    forget(files)
    target.mkdir(parents=True)
    start = time.perf_counter()
    for path in files:
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


TITLES = {"speed": "## Size and speed", "large": "## Writing a large model"}
"""Part -> its title in the table file."""


def put(command: str, title: str, lines: list[str], output: Path = OUTPUT, name: str = "Exports") -> None:
    """Replace a part of a table file. command: words after `python -m`; name: headline of a new file."""
    text = output.read_text() if output.exists() else f"# {name}\n"
    found = re.split(r"(?m)^(?=## )", text)
    head = f"{title}\n\n`python -m {command}`, {date.today()}, {cpu_name()}, torch {torch.__version__}. "
    kept = [one for one in found if not one.startswith(title)]
    output.write_text("\n".join(one.rstrip() + "\n" for one in [*kept, head + "\n".join(lines)]))
    sys.stdout.write(head + "\n".join(lines) + "\n")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "large"))
    parser.add_argument("folders", nargs="*", type=Path)
    words = parser.parse_args()
    lines = speed() if words.part == "speed" else large(*words.folders)
    put(f"benchmarks.export {words.part}", TITLES[words.part], lines)


if __name__ == "__main__":
    main()
