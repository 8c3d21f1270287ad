"""The base model's shapes with zeros in place of closed heads and neurons."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigcircuit.export.request import ExportRequest, PreparedExport

NAME = "zeroed"
DESCRIPTION = "the shapes of the base model, closed rows and columns zero; no smaller and no faster"
LOADS_IN = "anything that loads the base model"
LOADER = "transformers"


def prepare(request: "ExportRequest") -> "PreparedExport":
    """Plan the export. Raises UserError where constants need a bias that the model's class has not."""
    from bigcircuit.export.folder_plan import bias_settings, plan_folder
    from bigcircuit.export.stock import changed_config, skeleton_of

    flags = bias_settings(request, NAME)
    written = skeleton_of(changed_config(request.hf_config, flags))
    notes = ["this export is as large and as slow as the base model; --format uniform or compact makes it smaller"]
    return plan_folder(request, written, request.cuts, notes)
