"""Folders of a submission to the circuit track of MIB, read as the leaderboard's evaluation reads them.

It takes the folder of a method, with a folder for each task and model, and goes by names alone: the task and the model are those
whose name begins the folder's name or follows an underscore in it, and the last match wins. One file holds scores, from which
circuits of all sizes are taken; several are circuits of their own, of which it takes nine. All are evaluated by patching, whatever
the method's folder is called.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

COLUMNS = {
    "ioi": ("gpt2", "qwen2.5", "gemma2", "llama3"),
    "mcqa": ("qwen2.5", "gemma2", "llama3"),
    "arithmetic-addition": ("llama3",),
    "arithmetic-subtraction": ("llama3",),
    "arc-easy": ("gemma2", "llama3"),
    "arc-challenge": ("llama3",),
}
"""Tasks of the leaderboard, and the models on which each is evaluated."""
_MODELS = {
    "gpt2": "gpt2",
    "gpt2-small": "gpt2",
    "qwen2.5-0.5b": "qwen2.5",
    "gemma-2-2b": "gemma2",
    "llama-3.1-8b": "llama3",
    "meta-llama-3.1-8b": "llama3",
}
"""Name of a checkpoint, in small letters -> name of its model on the leaderboard."""
_CIRCUITS = 9
"""Circuits of a task and model that are submitted one by one."""


class ReadName(NamedTuple):
    """What the evaluation takes a folder for; None where no name is found."""

    task: str | None
    model: str | None


def model_name(checkpoint: str) -> str:
    """Name a model as the leaderboard does, or as its checkpoint where it has no column."""
    return _MODELS.get(checkpoint.lower(), checkpoint)


def read_name(name: str) -> ReadName:
    """Read the name of a folder as the evaluation does."""
    models = dict.fromkeys(model for models in COLUMNS.values() for model in models)
    found = []
    for known in (COLUMNS, models):
        spelled = [(one, spelling) for one in known for spelling in (one.replace("-", "_"), one)]
        matches = [one for one, spelling in spelled if name.startswith(spelling) or f"_{spelling}" in name]
        found.append(matches[-1] if matches else None)
    return ReadName(*found)


def check_columns(task: str, model: str) -> Iterator[str]:
    """Yield what is wrong with a folder for a task and a model, whose name has both."""
    found, name = read_name(f"{task}_{model}"), f"{task}_{model}"
    if None in found:
        columns = "; ".join(f"{one} on {', '.join(models)}" for one, models in COLUMNS.items())
        yield f"the leaderboard skips {name}: its columns are {columns}"
    elif found != (task, model):
        yield f"the leaderboard takes {name} for {found.task} on {found.model}; name the folder otherwise"
    elif model not in COLUMNS[task]:
        yield f"the leaderboard does not evaluate {task} on {model}, but on {', '.join(COLUMNS[task])}"


def check_method(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the folders of a method, as far as names and numbers of files tell."""
    tasks, models = set[str](), set[str]()
    for path in sorted(folder.iterdir()):
        found = read_name(path.name)
        if not path.is_dir():
            yield f"{path.name} is a file beside the folders of tasks and models, and cannot be evaluated; remove it"
            continue
        files = sorted(path.iterdir())
        circuits = [file for file in files if file.suffix in (".pt", ".json")]
        if found.task is None or found.model is None:
            continue
        if not circuits or (len(files) == 1) != (len(circuits) == 1):
            yield f"{path.name} needs one file of scores or {_CIRCUITS} of circuits, .pt or .json, and nothing else"
        elif len(circuits) not in (1, _CIRCUITS):
            yield f"{path.name} has {len(circuits)} files, which are taken for circuits; it needs {_CIRCUITS}, or one of scores"
        elif found.model in COLUMNS[found.task]:
            tasks.add(found.task)
            models.add(found.model)
    if min(len(tasks), len(models)) < 2:
        yield (
            f"the leaderboard wants two tasks and two models; here {_named(tasks, 'task')} and {_named(models, 'model')} "
            "can be evaluated"
        )


def _named(found: set[str], what: str) -> str:
    return f"{what} {', '.join(sorted(found))}" if found else f"no {what}"
