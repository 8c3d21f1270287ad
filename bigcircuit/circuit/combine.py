"""What is known about a circuit that is made of others: what they have in common, and what they were."""

import json
from collections.abc import Mapping, Sequence

from bigcircuit.circuit.metadata import HASH_KEYS
from bigcircuit.errors import UserError
from bigcircuit.io.provenance import versions

_KEPT = ("model", "model_revision", "model_config_sha256", "model_weights_sha256", "tokenizer_files_sha256", "adapter",
         "adapter_files_sha256", "task", "task_sha256", "task_tokens_sha256", "held_out_sha256", "ablation",
         "ablation_data", "ablation_data_sha256", "ablation_prompts", "widths")  # fmt: skip
"""Metadata that holds for a combination where it is the same for all its parts. Seed, scores and targets never do."""


def combined_metadata(
    operation: str,
    known: Sequence[Mapping[str, str]],
    parents: Sequence[Mapping[str, str]],
    granularities: Sequence[str],
) -> dict[str, str]:
    """Metadata of a circuit that an operation has made: what all parts have in common, the operation, and the parts.

    known: metadata of the parts. parents: how each part is called, and a hash of it.
    """
    first, *others = known
    common = {
        key: first[key] for key in _KEPT if key in first and all(other.get(key) == first[key] for other in others)
    }
    return common | {
        "operation": operation,
        "parents": json.dumps(list(parents)),
        "granularities": json.dumps(list(granularities)),
        "versions": json.dumps(versions()),
    }


def other_model(first: Mapping[str, str], second: Mapping[str, str]) -> str | None:
    """Return which part of the model, `weights`, `config` or `adapter`, differs between two circuits; None if none is known to."""
    for what in ("weights", "config", "adapter"):
        hashes = {known.get(HASH_KEYS[what]) for known in (first, second)} - {None, ""}
        if len(hashes) > 1:
            return what
    return None


def check_combinable(first: Mapping[str, str], second: Mapping[str, str], same_shapes: bool) -> None:
    """Raises UserError unless two circuits are of one model. same_shapes: whether their masks are."""
    if what := other_model(first, second):
        raise UserError(f"the circuits are of models with other {what}; only circuits of one model can be put together")
    if not same_shapes:
        raise UserError("the circuits are of models of other widths; only circuits of one model can be put together")
