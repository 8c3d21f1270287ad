"""A smaller model of the same sizes in every layer, with the config of a stock class."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigcircuit.export.request import ExportRequest, PreparedExport

NAME = "uniform"
DESCRIPTION = (
    "every layer cut to one MLP width, head count and key/value head count, padded with zeros where a layer keeps less"
)
LOADS_IN = "transformers, transformers serve, vLLM"
LOADER = "transformers"


def prepare(request: "ExportRequest") -> "PreparedExport":
    """Plan the export. Raises UserError where constants need a bias that the class has not, and for layers that are not alike."""
    from bigcircuit.export.folder_plan import bias_settings, plan_folder
    from bigcircuit.export.uniform_cut import uniform_cut

    request.check_layers(NAME)
    cut = uniform_cut(request, bias_settings(request, NAME, request.biased))
    return plan_folder(request, cut.written, cut.cuts, cut.notes)
