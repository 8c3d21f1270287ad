"""Settings of `task.text`: pruning on general text, where every token of a window is predicted."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bigcircuit.ablation.kinds import KINDS, config_kinds
from bigcircuit.config.section import Section

TEXT_TASK = "text"
"""The `task.name` of a corpus, or of the model's own samples, in place of pairs."""

_OF_PAIRS = (
    "format", "columns", "max_tokens", "leading_space", "answer_tokens", "chat", "bad_pairs", "labels", "keep", "padding",
    "size",
)  # fmt: skip
"""Settings of `task` that have no meaning for general text."""

_Length = Annotated[int, Field(ge=2, le=1_000_000)]


class TextConfig(Section):
    """Windows of a corpus, or of the model's own samples, for `task.name text`."""

    window: _Length = 256
    """Tokens of a window, all of which go through the model at once; a document's last window may be shorter."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Tokens from the beginning of a window to that of the next; those that a window shares with the one before are context and
    not scored again. By default the length of a window, whose first token alone is then context."""
    column: str = "text"
    """Column of a data set, JSONL or Parquet file with the text of a document, or its token ids."""
    generate: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Documents that the model itself writes, one window each, sampled from its start token at temperature 1 by `task.seed`, in
    place of a corpus."""
    loss: Literal["kl", "cross_entropy"] = "kl"
    """What `train.kl` weighs: `kl`: KL(full model || circuit) at every token; `cross_entropy`: that of the text itself."""
    logit_chunk: Annotated[int, Field(ge=1)] = 1024
    """Tokens, of all circuits of a pass together, whose logits exist at once, forward and backward. No number depends on it but
    for rounding."""

    @model_validator(mode="after")
    def _strides_within(self) -> "TextConfig":
        if self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"task.text.stride is {self.stride} but task.text.window is {self.window}, so text between windows would be left "
                "out; lower the stride"
            )
        return self


def text_settings_problem(config: Any) -> str | None:
    """Say which setting of a Config does not go with its task, as far as general text is concerned; None if all do.

    There is one stream of tokens and no answer that is wrong, so all that takes a second prompt or a contrast is refused.
    """
    task = config.task
    if config.train.weight_lr and (problem := _weight_copy_problem(config)):
        return problem
    if task.name != TEXT_TASK:
        given = [name for name, value in TextConfig() if getattr(task.text, name) != value]
        return f"task.text.{given[0]} is set but task.name is {task.name}; set task.name to text" if given else None
    if not task.path and not task.text.generate:
        return (
            "task.name is text; set task.path to a corpus, or task.text.generate to a number of the model's own samples"
        )
    if task.path and task.text.generate:
        return f"task.path is {task.path} and task.text.generate is {task.text.generate}; use one"
    defaults, ablation, train = type(task)(), config.ablation, config.train
    for name in _OF_PAIRS:
        if getattr(task, name) != getattr(defaults, name):
            return f"task.{name} is set but task.name is text, and it is for pairs; leave it out"
    if KINDS[ablation.name].needs_corrupted:
        kinds = [name for name in config_kinds() if not KINDS[name].needs_corrupted]
        return (
            f"ablation.kind is {ablation.kind} but task.name is text, which has no second prompt; set ablation.kind to "
            f"{' or '.join(kinds)}"
        )
    if ablation.data or ablation.prompts != "corrupted":
        name = "data" if ablation.data else "prompts"
        return f"ablation.{name} is set but task.name is text, whose means are over the training windows; leave it out"
    if any([train.hinge, *(overrides.get("train.hinge", 0) for overrides in config.population.members)]):
        return "train.hinge is set but task.name is text, which has no wrong answers; leave it out"
    if train.loss:
        return f"train.loss is {train.loss} but task.name is text, whose logits never exist as a whole; leave it out"
    if task.split.by != "prompt":
        return f"task.split.by is {task.split.by} but task.name is text, which is split by document; leave it out"
    return None


def _weight_copy_problem(config: Any) -> str | None:
    """Say what does not go with weights that learn along; None if nothing."""
    population, model = config.population, config.model
    others = {
        f"task.name {config.task.name}": config.task.name != TEXT_TASK,
        "a population, whose members would share one copy": population.seeds > 1 or len(population.members) > 1,
        f"model.dtype {model.dtype}": model.dtype != "float32",
        f"model.weights {model.weights}": model.weights != "resident",
        f"model.quantization {model.quantization}": model.quantization not in ("none", "dequantise"),
        f"train.saved {config.train.saved}": config.train.saved != "exact",
        "deepspeed": config.deepspeed is not None,
    }
    found = next((name for name, is_set in others.items() if is_set), None)
    return found and f"train.weight_lr is set and does not go with {found}; leave one of them out"
