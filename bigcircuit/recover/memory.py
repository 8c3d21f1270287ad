"""Memory of a recovery, counted from the headers of the weights."""

from bigcircuit.errors import UserError
from bigcircuit.model.load import DTYPES
from bigcircuit.model.resolve import ResolvedModel
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.recover.folder import ExportFolder
from bigcircuit.runtime.host_memory import FreeMemory

_STATE = 4 + 8 + 8
"""Bytes of a trained parameter beside its values, now and at the best step: gradient, its sum in float64, Adam's two moments."""


def needed_memory(export: ExportFolder, base: ResolvedModel, settings: RecoverSettings) -> int:
    """Bytes that a rank holds at least: weights of both models, what is trained, and logits of a micro-batch."""
    frozen = sum(parameter.numel() for parameter in base.skeleton.model.parameters())
    own = sum(size.numel() for size in export.sizes.values())
    if settings.train == "rows":
        trained, width = own, 4
    else:
        matrices = [size for size in export.sizes.values() if len(size) == 2]
        trained, width = sum(settings.rank * sum(size) for size in matrices), DTYPES[export.dtype].itemsize
    values = 4 + (4 if settings.validation else 0)
    logits = settings.micro_batch_size * settings.tokens * export.hf_config.vocab_size
    # Logits of both models, their logarithms and the gradient.
    return frozen * DTYPES[base.config.dtype].itemsize + own * width + trained * (values + _STATE) + 5 * 4 * logits


def check_memory(export: ExportFolder, base: ResolvedModel, settings: RecoverSettings) -> None:
    """Raises UserError where a rank needs more memory than is free, or for matrices of a higher rank than any that they add to."""
    highest = max(min(size) for size in export.sizes.values() if len(size) == 2)
    if settings.train == "lora" and settings.rank > highest:
        raise UserError(
            f"recover.rank is {settings.rank:,} but no matrix of {export.path} has a rank above {highest:,}; lower it, or set "
            "recover.train to rows"
        )
    needed, free = needed_memory(export, base, settings), FreeMemory.measure(base.config.device).free
    if needed > free:
        less = "recover.train lora" if settings.train == "rows" else "a lower recover.rank"
        raise UserError(
            f"{export.path}: recovering it needs {needed / 2**30:.1f} GiB a rank at least, and {free / 2**30:.1f} GiB are free; "
            f"take {less}, a smaller recover.micro_batch_size or shorter windows (recover.tokens)"
        )
