"""The base model's shapes with zeros in place of closed heads and neurons."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigcircuit.export.request import ExportRequest, PreparedExport

NAME = "zeroed"
DESCRIPTION = "the shapes of the base model, closed rows and columns zero; no smaller and no faster"
LOADS_IN = "anything that loads the base model"
LOADER = "transformers"


def prepare(request: "ExportRequest") -> "PreparedExport":
    """Plan the export. Raises UserError where constants need a bias that the model's class has not, and for shared weights."""
    from bigcircuit.export.zeroed_plan import plan_zeroed

    return plan_zeroed(request)
