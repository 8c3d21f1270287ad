"""Whether pairs that a circuit was trained on are among those that it is scored on as held out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from bigcircuit.config.load import flatten
from bigcircuit.config.plain import shown
from bigcircuit.config.schema import TaskConfig
from bigcircuit.data.dataset import TaskData, load_task
from bigcircuit.data.pair import Example, TokenIds
from bigcircuit.errors import UserError
from bigcircuit.evaluation.open_circuits import LoadedCircuit

_REMEDY = "or set --any_model true to score it on these"


class TrainingPrompts:
    """Reads the prompts that circuits were trained on or chosen by; the pairs of each task are read once."""

    def __init__(self, tokenizer: Any | None, hf_config: Any, known: Sequence[tuple[TaskConfig, TaskData]]) -> None:
        """known: tasks whose pairs are read already."""
        self._tokenizer, self._hf_config = tokenizer, hf_config
        self._known: list[tuple[TaskConfig, TaskData | None]] = list(known)

    def __call__(self, loaded: LoadedCircuit) -> set[TokenIds] | None:
        """Return the prompts of the training and validation pairs; None where the pairs of then are not at hand."""
        data = self._data(loaded.found_on) if loaded.found_on else None
        if data is None or data.sha256 != loaded.circuit.metadata.get("task_sha256"):
            return None
        return {prompt for name in ("train", "validation") for e in data.splits[name] for prompt in _prompts(e)}

    def _data(self, task: TaskConfig) -> TaskData | None:
        for known, data in self._known:
            if known == task:
                return data
        found = None
        with suppress(UserError):  # the pair file is no longer there, or no longer as it was
            found = load_task(task, self._tokenizer, self._hf_config)
        self._known.append((task, found))
        return found


def check_held_out(
    loaded: LoadedCircuit,
    name: str,
    task: TaskConfig,
    data: TaskData,
    read: Callable[[LoadedCircuit], set[TokenIds] | None],
) -> str | None:
    """Check that no pair that a circuit was trained on is among the held-out pairs of a task.

    name: of the task, short. read: see TrainingPrompts. Returns a note where such pairs are, or may be, in another task than the
    circuit's. Raises UserError where they are in the circuit's own.
    """
    expected = loaded.circuit.metadata.get("held_out_sha256")
    if task.text.generate or not expected or expected == data.held_out_sha256:
        return None
    held_out = [example for split in ("test", "off_distribution") for example in data.splits.get(split, ())]
    prompts = read(loaded)
    if prompts is None:
        return _unknown(loaded, name, task, data)
    count = sum(not prompts.isdisjoint(_prompts(example)) for example in held_out)
    if not count:
        return None
    changed = ", ".join(_changes(loaded, task))
    found = f"{count} of the {len(held_out)} held-out pairs of {name} have prompts that it was trained on"
    if task != loaded.task:
        return f"{loaded.path}: {found}"
    raise UserError(f"{loaded.path}: {found}{f' ({changed})' if changed else ''}; put that back, {_REMEDY}")


def _unknown(loaded: LoadedCircuit, name: str, task: TaskConfig, data: TaskData) -> str | None:
    known = loaded.circuit.metadata
    what = (
        f"the held-out pairs of {name} are others than where it was found (hash {known['held_out_sha256'][:12]}, now "
    )
    what += f"{data.held_out_sha256[:12]}), so pairs that it was trained on may be among them"
    same_file = (task.path or task.name).rsplit("/", 1)[-1] == known.get("task")
    if task == loaded.task and (same_file or known.get("task_sha256") == data.sha256):
        raise UserError(f"{loaded.path}: {what}; put back pair file, task.split and task.seed, {_REMEDY}")
    return f"{loaded.path}: {what}" if task == loaded.task else None


def _prompts(example: Example) -> Sequence[TokenIds]:
    return [example.clean + example.answers[0]] if example.is_window else [example.clean, example.corrupted]


def _changes(loaded: LoadedCircuit, task: TaskConfig) -> Iterator[str]:
    """Name the settings that differ from those of the circuit's run."""
    assert loaded.found_on is not None
    before = dict(flatten(loaded.found_on.model_dump(), "task."))
    for key, value in flatten(task.model_dump(), "task."):
        if before.get(key) != value:
            yield f"{key} is {shown(value)} and was {shown(before.get(key))}"
