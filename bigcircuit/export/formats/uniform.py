"""A smaller model of the same sizes in every layer, with the config of a stock class."""

from bigcircuit.errors import UserError
from bigcircuit.export.folder_plan import plan_folder
from bigcircuit.export.formats.zeroed import no_bias
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.uniform_cut import uniform_cut

NAME = "uniform"
DESCRIPTION = (
    "every layer cut to one MLP width, head count and key/value head count, padded with zeros where a layer keeps less"
)
LOADS_IN = "transformers, transformers serve, vLLM"
LOADER = "transformers"


def prepare(request: ExportRequest) -> PreparedExport:
    """Plan the export. Raises UserError where constants need a bias that the model's class has not."""
    cut = uniform_cut(request)
    if cut is None:
        raise UserError(no_bias(request, NAME))
    return plan_folder(request, cut.written, cut.cuts, cut.notes)
