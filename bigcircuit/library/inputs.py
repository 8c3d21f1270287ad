"""Objects that a run is given, as the files that a run is made from: pairs, and the model where its files say something else."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from bigcircuit.circuit.apply import base_model, remember_files
from bigcircuit.config.own_code import entry_point, is_reference
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.builders import DESCRIPTIONS, ENTRY_POINTS
from bigcircuit.errors import UserError
from bigcircuit.io.files import removing, temporary_path, write_bytes
from bigcircuit.model.load import DTYPES, load_config, load_tokenizer
from bigcircuit.model.sites import FrozenModel, find_sites
from bigcircuit.model.text_part import language_part, skips_layers
from bigcircuit.model.weight_files import EMBEDDED, model_folder, weight_files

_SETTINGS = ("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "_name_or_path")
"""Entries of a model's config that do not change what is computed, or are settings of a run."""
_PROBE = "One, 2: three!\n"


class ModelInput(NamedTuple):
    """The model of a run."""

    settings: dict[str, Any]
    """Dotted settings that name it."""
    frozen: FrozenModel | None
    """The object itself, which is not loaded again; None for a path."""


def model_input(model: Any, tokenizer: Any, folder: Path) -> ModelInput:
    """Find the files of a model and tokenizer, or write both into a folder if no files hold the same.

    model: a path, hub id, or Hugging Face model; tokenizer: None for that of the model's files. Raises UserError.
    """
    if isinstance(model, str | Path):
        if tokenizer is not None and not _same_tokenizer(tokenizer, str(model)):
            raise UserError(
                f"model {model}: its files hold another tokenizer than the one given; leave the tokenizer out"
            )
        return ModelInput({"model.path": str(model)}, None)
    if hasattr(model, "peft_config"):
        raise UserError(
            "the model has a PEFT adapter; call merge_and_unload() first, or give the model's path and model.adapter"
        )
    base = base_model(model)
    if skips_layers(base):
        raise UserError(
            f"a {type(base).__name__} has layers that text does not pass, which would have to be taken out; give the model's path"
        )
    # Whether types may be guessed is a setting, which the run looks at.
    frozen = find_sites(language_part(base), guess=True)
    settings = {
        "model.dtype": _dtype_of(base),
        "model.attention": _attention_of(base),
        "model.device": "cuda" if frozen.device.type == "cuda" else "cpu",
    }
    path = _files_of(base, tokenizer)
    if path is None:
        path = str(folder)
        _write_model(base, tokenizer, folder)
        remember_files(base, path)
    return ModelInput({"model.path": path, **settings}, frozen)


def _dtype_of(model: Any) -> str:
    """Raises UserError unless all parameters have one dtype and one device, and are weights as they are."""
    kinds, devices = ({getattr(p, name) for p in model.parameters()} for name in ("dtype", "device"))
    name = str(next(iter(kinds))).removeprefix("torch.")
    if getattr(model.config, "quantization_config", None) is not None or len(kinds) > 1 or name not in DTYPES:
        raise UserError(
            f"the model has parameters of type {', '.join(sorted(map(str, kinds)))}; load it in one of {', '.join(DTYPES)}, or "
            "give its path"
        )
    if len(devices) > 1 or next(iter(devices)).type not in ("cpu", "cuda"):
        raise UserError(
            f"the model lies on {', '.join(sorted(map(str, devices)))}; load it on one device, or give its path"
        )
    return name


def _attention_of(model: Any) -> str:
    name = model.config._attn_implementation
    if name not in ("sdpa", "eager"):
        raise UserError(f'the model has {name} attention; call model.set_attn_implementation("sdpa") first')
    return name


def _files_of(model: Any, tokenizer: Any) -> str | None:
    """Return the path or hub id of files that hold what is in memory; None if there are none."""
    name = getattr(model.config, "_name_or_path", "")
    if not name or model_folder(name) is None:
        return None
    if not _same_config(model, name) or not _same_weights(model, name):
        return None
    if tokenizer is not None and not _same_tokenizer(tokenizer, name):
        return None
    return "embedded" if Path(name).resolve() == EMBEDDED.resolve() else name


def _same_config(model: Any, name: str) -> bool:
    kept = [
        {key: value for key, value in one.to_dict().items() if key not in _SETTINGS}
        for one in (model.config, load_config(ModelConfig(path=name, architecture="guess")))
    ]
    return kept[0] == kept[1]


def _same_weights(model: Any, name: str) -> bool:
    """Compare every tensor of the files with the one in memory; a name that is not the same in both counts as a difference."""
    state = model.state_dict()
    left, tied = set(state), {state[key].data_ptr() for key in state}
    for file in weight_files(ModelConfig(path=name)):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                if key not in state:
                    return False
                mine = state[key]
                stored = tensors.get_tensor(key)
                if stored.shape != mine.shape or not torch.equal(stored.to(mine.dtype), mine.cpu()):
                    return False
                left.discard(key)
                tied.discard(mine.data_ptr())
    return all(state[key].data_ptr() not in tied for key in left)  # what is not in a file is tied to what is


def _same_tokenizer(tokenizer: Any, name: str) -> bool:
    """Compare by vocabulary and rules, and by the ids of a text."""
    other = load_tokenizer(ModelConfig(path=name))
    if other is None:
        return False
    texts = [_spelled(one) for one in (tokenizer, other)]
    return texts[0] == texts[1] and tokenizer(_PROBE)["input_ids"] == other(_PROBE)["input_ids"]


def _spelled(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    rules = json.loads(backend.to_str())
    return {key: value for key, value in rules.items() if key not in ("padding", "truncation")}  # set by calls


def _write_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer. A folder that is there already has to hold the same. Raises UserError if not."""
    if folder.exists():
        if not _same_weights(model, str(folder)) or not (tokenizer is None or _same_tokenizer(tokenizer, str(folder))):
            raise UserError(f"{folder.parents[1]}: holds a run of a model with other weights; name another folder")
        return
    temporary = temporary_path(folder)
    with removing(temporary):
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        temporary.rename(folder)


@contextmanager
def frozen_weights(frozen: FrozenModel | None) -> Iterator[None]:
    """Turn gradients of weights and dropout off inside, as for a model that a run has loaded, and put back what was."""
    if frozen is None:
        yield
        return
    model = frozen.model
    training = {module: module.training for module in model.modules()}
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, had in wanted:
            parameter.requires_grad_(had)


def task_settings(pairs: Any, file: Path, make: Callable[[Callable[..., Any]], Iterable[Any]]) -> dict[str, Any]:
    """Name the task of a run: a builder, a path, or a file to which pairs are written.

    pairs: name of a task builder, path or hub id of pairs, rows (mappings, a DataFrame, a data set), or a function that makes
    rows. file: where rows are written. make: calls the function. Raises UserError.
    """
    if isinstance(pairs, str | Path):
        named = pairs in DESCRIPTIONS or is_reference(str(pairs)) or entry_point(ENTRY_POINTS, str(pairs)) is not None
        return {"task.name": str(pairs)} if named else {"task.name": "pairs", "task.path": str(pairs)}
    content = "".join(
        json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(make(pairs) if callable(pairs) else pairs)
    )
    if not content:
        raise UserError("pairs is empty; give at least two rows with clean, corrupted, answers and wrong_answers")
    if file.exists() and file.read_bytes() != content.encode():
        raise UserError(f"{file.parents[1]}: holds a run of other pairs; name another folder")
    write_bytes(file, content.encode())
    return {"task.name": "pairs", "task.path": str(file)}


def _rows(pairs: Any) -> Iterator[dict[str, Any]]:
    """Yield rows as plain data. Raises UserError for what is no table."""
    if hasattr(pairs, "to_dict") and hasattr(pairs, "columns"):  # pandas
        pairs = pairs.to_dict("records")
    elif isinstance(pairs, Mapping):  # datasets.DatasetDict, or splits by name
        pairs = ({**row, "split": name} for name, rows in pairs.items() for row in rows)
    elif not isinstance(pairs, Iterable):
        raise UserError(f"pairs is {_kind_of(pairs)}; give rows, a DataFrame, a data set, a path or the name of a task")
    for number, row in enumerate(pairs):
        row = row._asdict() if hasattr(row, "_asdict") else row
        if not isinstance(row, Mapping):
            raise UserError(
                f"pairs row {number}: is {_kind_of(row)}; give mappings with clean, corrupted, answers, ..."
            )
        cells = {str(key): _plain(value) for key, value in row.items()}
        try:
            json.dumps(cells, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"pairs row {number}: {error}; give text, numbers and lists") from error
        yield {key: value for key, value in cells.items() if value is not None}


def _plain(value: Any) -> Any:
    """Turn arrays, tensors and numbers of numpy into lists and numbers, and tuples into lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return None if value != value else value  # pandas writes NaN or NA where a cell is empty


def _kind_of(value: Any) -> str:
    return f"of type {type(value).__name__}"
