"""Library versions that a result was made with."""

import platform
from importlib.metadata import version

LIBRARIES = ("bigcircuit", "torch", "transformers", "safetensors", "deepspeed", "peft", "accelerate")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
