"""Open circuits of run folders and files, with the configs that name their model and task."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.metadata import HASH_KEYS
from bigcircuit.circuit.model_check import check_ablation, check_hashes, check_widths
from bigcircuit.config.load import load, override
from bigcircuit.config.schema import Config, TaskConfig
from bigcircuit.data.dataset import TaskData
from bigcircuit.errors import UserError
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.granularity import LayerShape
from bigcircuit.results.locate import check_named_once, circuit_files, name_of, run_of, unique
from bigcircuit.runtime.progress import ProgressDisplay


class LoadedCircuit(NamedTuple):
    """A circuit that is evaluated, with the config that names its model and task."""

    name: str
    """Unique among the circuits of an evaluation."""
    path: Path
    circuit: Circuit
    config: Config
    """Config of the circuit's run, or of `--config`, with overrides."""
    control: bool
    """Whether the circuit is a control, see `--control`."""
    found_on: TaskConfig | None = None
    """The task of the circuit's run, without overrides; None for a circuit whose run folder is not at hand."""

    @property
    def task(self) -> TaskConfig:
        """The task whose pairs the circuit was found on, with their own labels."""
        return self.config.task.model_copy(update={"labels": "own"})

    @property
    def found_under(self) -> str:
        """The ablation that the circuit was found under."""
        return self.circuit.ablation_name


def open_circuits(
    names: Sequence[str], controls: Sequence[str], config: str | None, overrides: Mapping[str, Any]
) -> list[LoadedCircuit]:
    """Open the circuits of run folders (all members) and of files, controls last.

    config: config file that names model and task of circuit files outside run folders. Raises UserError.
    """
    if not names:
        raise UserError("evaluate needs a run folder or a circuit file: bigcircuit evaluate runs/quickstart")
    found: dict[str, LoadedCircuit] = {}
    for name, control in [*((name, False) for name in names), *((name, True) for name in controls)]:
        for loaded in _open(Path(name), control, config, overrides):
            label = unique(loaded.name, found)
            found[label] = loaded._replace(name=label)
    check_named_once(loaded.path for loaded in found.values())
    return list(found.values())


def _open(path: Path, control: bool, config: str | None, overrides: Mapping[str, Any]) -> list[LoadedCircuit]:
    if path.is_dir():
        if config is not None:
            raise UserError(
                f"{path}: is a run folder, which has a config of its own, so --config {config} would change nothing; leave it out, "
                f"or name a circuit file of the folder"
            )
        of_run, found_on = run_config(path, overrides), _task_of(path)
        return [
            LoadedCircuit(
                name=name_of(path, file),
                path=file,
                circuit=Circuit.load(file),
                config=of_run,
                control=control,
                found_on=found_on,
            )
            for file in circuit_files(path)
        ]
    circuit, run = Circuit.load(path), run_of(path)
    if config is not None:
        named = apply_overrides(lambda over: load(config, over), overrides)
    elif run is not None:
        named = run_config(run, overrides)
    else:
        raise UserError(f"{path}: does not lie in a run folder; give --config FILE that names its model and task")
    return [
        LoadedCircuit(
            name=name_of(run, path) if run and config is None else path.stem,
            path=path,
            circuit=circuit,
            config=named,
            control=control,
            found_on=_task_of(run) if run else None,
        )
    ]


def _task_of(folder: Path) -> TaskConfig:
    return run_config(folder, {}).task.model_copy(update={"labels": "own"})


def run_config(folder: Path, overrides: Mapping[str, Any]) -> Config:
    """Read the config of a run folder and apply overrides. Raises UserError if the folder has none."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))["config"]
    except OSError as error:
        raise UserError(f"{folder}: holds no run (no config.json); name a run folder or a circuit file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a run's config.json; restore it or give --config with a circuit file") from error
    # Only the sections that an evaluation depends on, so that runs of older versions open whatever else they set.
    kept = {name: raw[name] for name in ("model", "task", "ablation", "deepspeed", "train") if name in raw}
    if isinstance(kept.get("model"), dict):  # another machine may evaluate the run
        kept["model"] = {key: value for key, value in kept["model"].items() if key != "device"}
    return apply_overrides(lambda over: override(Config(), kept | dict(over), str(path)), overrides)


def apply_overrides(make: Callable[[Mapping[str, Any]], Config], overrides: Mapping[str, Any]) -> Config:
    """Make a config with overrides.

    `ablation.data` or `ablation.prompts` on a circuit found under an ablation without means switch `ablation.kind` to mean.
    """
    means = {"ablation.data", "ablation.prompts"} & overrides.keys()
    rest = {key: value for key, value in overrides.items() if key not in means}
    if means and not KINDS[make(rest).ablation.name].needs_moments:
        overrides = {**overrides, "ablation.kind": "mean"}
    return make(overrides)


def check_same_model(
    loaded: LoadedCircuit, shapes: Sequence[LayerShape], any_model: bool, progress: ProgressDisplay | None = None
) -> None:
    """Check that a circuit is of the model: by widths, and by the hashes of the model's files. Raises UserError if not.

    any_model: check widths only. Weights are hashed once per host, and not loaded. progress: shows how much is hashed.
    """
    then, model, subject = loaded.circuit.metadata, loaded.config.model, str(loaded.path)
    check_widths(loaded.circuit.masks, then, shapes, subject, "name the model it was found in with --model.path")
    if loaded.circuit.ablation is not None:
        check_ablation(loaded.circuit.ablation, loaded.circuit.masks, shapes, subject)
    if any_model or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    if bool(model.adapter) != bool(then.get("adapter", model.adapter)):
        raise UserError(
            f"{loaded.path}: found with adapter {then['adapter'] or 'none'}, and model.adapter is {model.adapter or 'none'}; set "
            "--model.adapter, or --any_model true to evaluate it there"
        )
    called = {part: (model.adapter or "") if part == "adapter" else model.path for part in HASH_KEYS}
    remedy = "set --model.path, or --any_model true to evaluate it there"
    check_hashes(then, fingerprint(model, progress), subject, called, remedy)


def check_same_tokens(loaded: LoadedCircuit, data: TaskData) -> None:
    """Raises UserError if the pairs that a circuit was found on have other token ids now. data: of the circuit's task."""
    known = loaded.circuit.metadata
    expected = known.get("task_tokens_sha256")
    if known.get("task_sha256") == data.sha256 and expected and expected != data.tokens_sha256:
        raise UserError(
            f"{loaded.path}: found on the same pairs with other token ids (hash {expected[:12]}, now {data.tokens_sha256[:12]}); "
            "put back tokenizer and task settings, or set --any_model true to evaluate it on these"
        )
