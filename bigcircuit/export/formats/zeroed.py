"""The base model's shapes with zeros in place of closed heads and neurons."""

from bigcircuit.errors import UserError
from bigcircuit.export.folder_plan import plan_folder
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.stock import bias_flags, changed_config, skeleton_of

NAME = "zeroed"
DESCRIPTION = "the shapes of the base model, closed rows and columns zero; no smaller and no faster"
LOADS_IN = "anything that loads the base model"
LOADER = "transformers"


def prepare(request: ExportRequest) -> PreparedExport:
    """Plan the export. Raises UserError where constants need a bias that the model's class has not."""
    flags = bias_flags(request.hf_config, request.biased)
    if flags is None:
        raise UserError(no_bias(request, NAME))
    written = skeleton_of(changed_config(request.hf_config, flags))
    notes = ["this export is as large and as slow as the base model; --format uniform or compact makes it smaller"]
    return plan_folder(request, written, request.cuts, notes)


def no_bias(request: ExportRequest, name: str) -> str:
    """Say that a class has no bias for constants, and what to do."""
    return (
        f"--format {name}: closed nodes output constants under {request.ablation.name} ablation, and in "
        f"{request.hf_config.model_type} a projection that writes them has no bias; use --format compact, or --ablation zero"
    )
