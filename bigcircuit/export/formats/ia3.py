"""An (IA)3 adapter of PEFT: zeros at the inputs of the output projections."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigcircuit.export.request import ExportRequest, PreparedExport

NAME = "ia3"
DESCRIPTION = "a stock (IA)3 adapter that closes nodes of the unchanged base model; zero ablation alone; no faster"
LOADS_IN = "peft, on the base model"
LOADER = "peft"


def prepare(request: "ExportRequest") -> "PreparedExport":
    """Plan the adapter. Raises UserError for constants, masks behind the MLP, and a base with an adapter."""
    from bigcircuit.export.ia3_adapter import plan_ia3

    return plan_ia3(request)
