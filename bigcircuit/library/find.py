"""`bigcircuit.find`: the run of `bigcircuit prune` on objects, top to bottom."""

import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from bigcircuit.config.load import dotted_keys, load
from bigcircuit.config.own_code import given_function
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.builders import LIST_BUILDERS
from bigcircuit.data.collate import Batch
from bigcircuit.distributed.ranks import joined_ranks
from bigcircuit.errors import UserError
from bigcircuit.io.run_dir import RunDir
from bigcircuit.library.inputs import ModelInput, frozen_weights, model_input, task_settings
from bigcircuit.library.result import FoundCircuits
from bigcircuit.model.load import load_tokenizer
from bigcircuit.prune import prune
from bigcircuit.runtime.progress import ProgressDisplay


def find(
    model: Any,
    tokenizer: Any = None,
    pairs: Any = None,
    *,
    size: Any = None,
    folder: str | Path | None = None,
    config: str | Path | None = None,
    preset: str | None = None,
    loss: Callable[[Tensor, Batch, Tensor], Tensor] | str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> FoundCircuits:
    """Find the circuit of a behaviour: the run of `bigcircuit prune`, with the same result to the byte.

    model: a Hugging Face causal language model, which is left as it was, or a folder or hub id. tokenizer: by default that of the
    model's files. pairs: rows (a list of mappings with clean, corrupted, answers and wrong_answers, a DataFrame, a data set), a
    function that makes rows from (tokenizer, size, random generator), a path, or the name of a task builder, whose list, if it
    needs one, is the setting `task.path`; by default what `config` names. size: neurons to keep, as a share (0.1 or "10%") or a
    count (200), or sizes by granularity, such as {"head": 12}. folder: run folder; the same call with the same folder goes on
    after an interruption. By default a temporary one, removed with the result. config: a YAML file to start from. preset: name
    of settings that come with the package, such as "paper", under those of the file. loss: function whose value is added to the
    loss, as `train.loss`: of (logits of a circuit [S, V], batch, logits of the full model [S, V]), one number a pair, [B].
    quiet: print nothing.
    settings: as in YAML, by section, `train={"steps": 300}`, or dotted, `**{"model.dtype": "bfloat16"}`.

    An object whose weights are not those of its files is written to the run folder first. Raises UserError, in one line, for what
    the caller can mend.
    """
    temporary = TemporaryDirectory(prefix="bigcircuit-") if folder is None else None
    run = RunDir(Path(temporary.name) / "run" if temporary else Path(str(folder)).expanduser())
    given = dotted(settings)
    source = model_input(model, tokenizer, run.inputs / "model")
    from_list = isinstance(pairs, str) and pairs in LIST_BUILDERS  # whose list is a setting
    _check_free({key: value for key, value in given.items() if not (from_list and key == "task.path")}, source)
    wanted = {**source.settings, **_sizes(size), **given, "output": str(run.path)}
    if pairs is not None:
        make = partial(_call, tokenizer=tokenizer, model=source.settings["model.path"], settings=wanted)
        wanted |= task_settings(pairs, run.inputs / "pairs.jsonl", make)
    with ExitStack() as stack:
        if loss is not None:
            named = loss if isinstance(loss, str) else stack.enter_context(given_function(loss, "loss"))
            wanted["train.loss"] = named
        resolved = load(config, wanted, preset=preset)
        ranks = stack.enter_context(joined_ranks(resolved.model.device))
        stack.enter_context(frozen_weights(source.frozen))
        if source.frozen is not None:
            if ranks.size > 1:
                raise UserError("several ranks need the model's path: each of them loads its own part")
            ranks = replace(ranks, device=source.frozen.device)
        progress = ProgressDisplay(False) if quiet else None
        prune(resolved, ranks, frozen=source.frozen, progress=progress)
    return FoundCircuits(run.path, temporary)


_ARGUMENTS = {
    "train.loss": "loss",
    "model.path": "model",
    "task.name": "pairs",
    "task.path": "pairs",
    "output": "folder",
}
"""Setting -> the argument that gives it."""
_ONLY_FILES = ("model.revision", "model.weights", "model.quantization", "model.adapter", "deepspeed")
"""Settings of loading, which a model that is loaded already cannot have."""


def _check_free(given: Mapping[str, Any], source: ModelInput) -> None:
    """Raises UserError for a setting that an argument or the model object decides."""
    for key in given:
        if key in _ARGUMENTS:
            raise UserError(f"{key} is given by the argument {_ARGUMENTS[key]}; leave the setting out")
        if source.frozen is not None and (key in source.settings or key in _ONLY_FILES):
            raise UserError(
                f"{key} cannot be set for a model that is loaded already; give the model's path, or leave it out"
            )


def dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten sections to dotted keys; a setting that is a mapping itself stays one."""
    leaves = set(dotted_keys())
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and key not in leaves:
            found |= dotted({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            found[key] = value
    return found


def _sizes(size: Any) -> dict[str, Any]:
    if isinstance(size, Mapping):
        return {f"target.{name}": value for name, value in size.items()}
    return {} if size is None else {"target.total": size}


def _call(function: Any, *, tokenizer: Any, model: str, settings: Mapping[str, Any]) -> Any:
    """Call a function that makes rows, with the arguments of a task builder."""
    task = load(None, {key: value for key, value in settings.items() if key in ("task.size", "task.seed")}).task
    tokenizer = load_tokenizer(ModelConfig(path=model)) if tokenizer is None else tokenizer
    return function(tokenizer, task.size, random.Random(task.seed))
