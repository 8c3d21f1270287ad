"""Layers of their own sizes, loaded by a class that is made from the base's."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigcircuit.export.request import ExportRequest, PreparedExport

NAME = "compact"
DESCRIPTION = (
    "every layer as small as the circuit is there: its own heads and MLP width, closed sub-layers and blocks left out"
)
LOADS_IN = "bigcircuit.load_exported(DIR), and AutoModelForCausalLM after `import bigcircuit`"
LOADER = "bigcircuit"


def prepare(request: "ExportRequest") -> "PreparedExport":
    """Plan the export; every circuit of a dense model whose constants do not depend on the position has a place in this format.

    Raises UserError for layers that are neither one attention and one MLP nor have experts, and for experts of a form of their own.
    """
    if any(shape.experts for shape in request.base.shapes):
        from bigcircuit.export.compact_mixture import plan_mixture

        return plan_mixture(request)
    from bigcircuit.export.compact_cut import plan_compact

    request.check_layers(NAME)
    return plan_compact(request)
