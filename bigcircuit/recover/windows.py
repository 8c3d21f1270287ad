"""The text of a recovery: windows of general text (data/text.py), of a corpus or of what the base writes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bigcircuit.config.load import load
from bigcircuit.config.schema import Config
from bigcircuit.config.text import TEXT_TASK
from bigcircuit.data.dataset import TaskData, load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.errors import UserError
from bigcircuit.model.resolve import ResolvedModel
from bigcircuit.model.sites import FrozenModel
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.train.pair_filters import complete_data

_NAMES = {
    "task.text.generate": "recover.generate",
    "task.text.column": "recover.field",
    "task.text.window": "recover.tokens",
    "task.split": "recover.held_out",
    "task.path": "recover.text",
    "set task.special_tokens to false, or ": "",
}
"""Keys of a text task -> the settings of a recovery that stand for them; remedies that a recovery does not have -> nothing."""


def with_text(settings: RecoverSettings, given: Mapping[str, Any]) -> Config:
    """Make the config of the base model and of the text. given: dotted keys of the model and of the command line.

    Raises UserError.
    """
    keys = {
        "task.name": TEXT_TASK,
        "task.path": settings.text,
        "task.text.generate": settings.generate,
        "task.text.column": settings.field,
        "task.text.window": settings.tokens,
        "task.split.train": 1 - settings.held_out - settings.validation,
        "task.split.validation": settings.validation,
        "task.split.test": settings.held_out,
        "task.seed": settings.seed,
        "ablation.kind": "zero",
    }
    with _named_as_here():
        return load(None, {**given, **keys})


def load_text(config: Config, base: ResolvedModel) -> TaskData:
    """Read the corpus, or lay out the samples, before weights are loaded. Raises UserError."""
    with _named_as_here():
        text = load_task(config.task, base.tokenizer, base.hf_config)
    return text._replace(notes=tuple(map(_as_here, text.notes)))


def complete_text(config: Config, base: FrozenModel, text: TaskData, micro_batches: MicroBatches) -> TaskData:
    """Let the base write its samples, where these are asked for. Raises UserError."""
    with _named_as_here():
        return complete_data(config, base, text, micro_batches)


@contextmanager
def _named_as_here() -> Iterator[None]:
    """Name the settings of a recovery in errors about a text task."""
    try:
        yield
    except UserError as error:
        raise UserError(_as_here(str(error))) from error


def _as_here(message: str) -> str:
    for key, name in _NAMES.items():
        message = message.replace(key, name)
    return message
