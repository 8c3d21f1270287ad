"""Apply a circuit to a Hugging Face model object: whatever the model computes inside the context, the circuit computes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.model_check import check_ablation, check_hashes, check_widths
from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.forward.applied import AppliedMasks, CorruptedPrompts
from bigcircuit.forward.model_check import check_loaded_model
from bigcircuit.model.architectures import GUESSED
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.sites import FrozenModel, find_sites
from bigcircuit.model.weight_files import model_folder

_REMEDY = "give the model it was found in"
_WRITTEN: "WeakKeyDictionary[Any, str]" = WeakKeyDictionary()
"""Model object -> folder to which its weights were written, because no other files hold the same."""
_CHECKED: "WeakSet[Any]" = WeakSet()
"""Model objects of types that are in no table, in which gates were seen to do what they say."""


def remember_files(model: Any, folder: str) -> None:
    """Remember that the files of a folder hold the weights of a model object."""
    _WRITTEN[model] = folder


def base_model(model: Any) -> Any:
    """Return the Hugging Face model within a PEFT model, or the model itself. Raises UserError for other objects."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if not hasattr(model, "config") or not hasattr(model, "get_output_embeddings"):
        raise UserError(
            f"a {type(model).__name__} is not a Hugging Face causal language model; give what "
            "AutoModelForCausalLM.from_pretrained returns"
        )
    return model


@contextmanager
def apply_circuit(
    masks: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    ablation: Ablation,
    model: Any,
    corrupted_ids: Any = None,
    any_model: bool = False,
) -> Iterator[Any]:
    """Mask every pass of a model inside the context; yields the model. See `Circuit.applied`."""
    frozen = find_sites(base_model(model), guess=True)
    check_widths(masks, metadata, frozen.shapes, "this circuit", _REMEDY)
    check_ablation(ablation, masks, frozen.shapes)
    if not any_model:
        check_object(metadata, model)
    if ablation.kind.needs_corrupted and corrupted_ids is None:
        raise UserError(
            f"{ablation.name} ablation needs the corrupted prompts: applied(model, corrupted_ids=...), or name another ablation: "
            'applied(model, ablation="zero")'
        )
    if corrupted_ids is not None and not ablation.kind.needs_corrupted:
        raise UserError(
            f"corrupted_ids are given and {ablation.name} ablation runs no corrupted prompts; leave them out"
        )
    _check_devices(frozen, ablation)
    if frozen.architecture.kind == GUESSED and frozen.model not in _CHECKED:
        check_loaded_model(frozen)
        _CHECKED.add(frozen.model)
    corrupted = CorruptedPrompts(corrupted_ids) if ablation.kind.needs_corrupted else None
    with AppliedMasks.of(frozen, masks, ablation, corrupted):
        yield model


def check_object(metadata: Mapping[str, str], model: Any) -> None:
    """Compare the hashes of a circuit with the files that a model object was loaded from, where they are on this machine.

    Files are hashed once a machine; what was changed in memory afterwards is not noticed. Raises UserError.
    """
    base, adapted = base_model(model), hasattr(model, "get_base_model") or hasattr(model, "peft_config")
    if bool(metadata.get("adapter", "")) != adapted and "adapter" in metadata:
        raise UserError(
            f"this circuit: found with adapter {metadata['adapter'] or 'none'}, and the model has {'one' if adapted else 'none'}; "
            f"{_REMEDY}, or set any_model=True"
        )
    name = _WRITTEN.get(base) or getattr(base.config, "_name_or_path", "")
    if not name or model_folder(name) is None:
        return
    now = fingerprint(ModelConfig(path=name))
    known = {part: now[part] for part in ("config", "weights")}
    check_hashes(metadata, known, "this circuit", dict.fromkeys(now, name), f"{_REMEDY}, or set any_model=True")


def _check_devices(frozen: FrozenModel, ablation: Ablation) -> None:
    devices = {str(parameter.device) for parameter in frozen.model.parameters()}
    if "meta" in devices:
        raise UserError("the model has no weights (they are on the meta device); load them first")
    if len(devices) > 1 and ablation.tensors():
        raise UserError(
            f"the model lies on {', '.join(sorted(devices))}, and the constants of {ablation.name} ablation on one device; "
            "load the model on one"
        )
