"""What is to be evaluated: circuits from run folders and files, with the config that names their model and task."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load, override
from bigcircuit.config.schema import Config, TaskConfig
from bigcircuit.errors import UserError
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.granularity import GRANULARITIES, LayerShape
from bigcircuit.results.locate import circuit_files, name_of, run_of, unique


class LoadedCircuit(NamedTuple):
    """One circuit that is evaluated."""

    name: str
    """Unique among those evaluated together."""
    path: Path
    circuit: Circuit
    config: Config
    """Its run's, or the one that was given, with overrides."""
    control: bool

    @property
    def task(self) -> TaskConfig:
        """The pairs it is evaluated on: those it was found on, with their own labels."""
        return self.config.task.model_copy(update={"labels": "own"})


def open_circuits(
    names: Sequence[str], controls: Sequence[str], config: str | None, overrides: Mapping[str, Any]
) -> list[LoadedCircuit]:
    """Circuits of run folders (all members) and of files, controls last.

    config: file that names model and task of circuit files that do not lie in a run folder. Raises UserError.
    """
    if not names:
        raise UserError("evaluate needs a run folder or a circuit file: bigcircuit evaluate runs/quickstart")
    found: dict[str, LoadedCircuit] = {}
    for name, control in [*((name, False) for name in names), *((name, True) for name in controls)]:
        for subject in _open(Path(name), control, config, overrides):
            label = unique(subject.name, found)
            found[label] = subject._replace(name=label)
    return list(found.values())


def _open(path: Path, control: bool, config: str | None, overrides: Mapping[str, Any]) -> list[LoadedCircuit]:
    if path.is_dir():
        if config is not None:
            raise UserError(
                f"{path}: is a run folder, which has a config of its own, so --config {config} would change nothing; leave it out, "
                f"or name a circuit file of the folder"
            )
        own = run_config(path, overrides)
        files = circuit_files(path)
        return [LoadedCircuit(name_of(path, file), file, Circuit.load(file), own, control) for file in files]
    circuit = Circuit.load(path)
    run = run_of(path)
    if config is not None:
        return [
            LoadedCircuit(path.stem, path, circuit, with_means(lambda over: load(config, over), overrides), control)
        ]
    if run is None:
        raise UserError(f"{path}: does not lie in a run folder; give --config FILE that names its model and task")
    return [LoadedCircuit(name_of(run, path), path, circuit, run_config(run, overrides), control)]


def run_config(folder: Path, overrides: Mapping[str, Any]) -> Config:
    """The config of a run folder with overrides. Raises UserError if there is none."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))["config"]
    except OSError as error:
        raise UserError(f"{folder}: holds no run (no config.json); name a run folder or a circuit file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a run's config.json; restore it or give --config with a circuit file") from error
    # Only what an evaluation depends on: a run of an older version is read whatever else it had set.
    kept = {name: raw[name] for name in ("model", "task", "ablation", "deepspeed", "train") if name in raw}
    return with_means(lambda over: override(Config(), kept | dict(over), str(path)), overrides)


def with_means(make: Callable[[Mapping[str, Any]], Config], overrides: Mapping[str, Any]) -> Config:
    """A config in which overrides may say what means are over, also where a circuit was found under an ablation without any."""
    means = {"ablation.data", "ablation.prompts"} & overrides.keys()
    rest = {key: value for key, value in overrides.items() if key not in means}
    if means and not KINDS[make(rest).ablation.name].needs_moments:
        overrides = {**overrides, "ablation.kind": "mean"}
    return make(overrides)


def check_fits(subject: LoadedCircuit, shapes: Sequence[LayerShape], any_model: bool) -> None:
    """Raises UserError, before weights are loaded, unless circuit and model belong together.

    any_model: the same widths suffice. Weights are hashed once a host.
    """
    for name, mask in subject.circuit.masks.items():
        widths = [GRANULARITIES[name].width(shape) for shape in shapes]
        found = json.loads(subject.circuit.metadata.get("widths", "{}")).get(name, widths)
        if found != widths or tuple(mask.shape) != (len(widths), max(widths)):
            raise UserError(
                f"{subject.path}: its {name} mask has {_few(found)} nodes in {len(mask)} layers and the model {_few(widths)} in "
                f"{len(widths)}; name the model it was found in with --model.path"
            )
    if any_model or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    now, then = fingerprint(subject.config.model), subject.circuit.metadata
    for part in ("config", "weights"):
        expected = then.get(f"model_{part}_sha256")
        if expected and now[part] and now[part] != expected:
            raise UserError(
                f"{subject.path}: found in {then.get('model') or 'another model'}, whose {part} hash is {expected[:12]}, and "
                f"{subject.config.model.path} has {now[part][:12]}; set --model.path, or --any_model true to evaluate it there"
            )


def _few(widths: Sequence[int]) -> str:
    return (
        str(widths[0])
        if len(set(widths)) == 1
        else ", ".join(map(str, widths[:4])) + ("..." if len(widths) > 4 else "")
    )
