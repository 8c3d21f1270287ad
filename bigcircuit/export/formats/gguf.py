"""The uniform model as one GGUF file, in the layout of llama.cpp's converter."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigcircuit.export.request import ExportRequest, PreparedExport

NAME = "gguf"
DESCRIPTION = (
    "the uniform model of a Llama, Mistral, Qwen2 or Qwen3 as model.gguf (constants: the first two); needs gguf"
)
LOADS_IN = "llama.cpp and what is built on it; transformers by gguf_file"
LOADER = "gguf"


def prepare(request: "ExportRequest") -> "PreparedExport":
    """Plan the file. Raises UserError for other architectures, windows, and rotary scaling that the file cannot say."""
    from bigcircuit.export.gguf_file import plan_gguf

    return plan_gguf(request)
