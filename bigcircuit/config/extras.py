"""Optional libraries: which extra of the package brings each, and the one line that asks for what is missing.

Files that import such a library call `need` before they do, so that a run is refused before weights are loaded.
"""

from importlib.util import find_spec
from types import MappingProxyType

from bigcircuit.errors import UserError

EXTRAS = MappingProxyType(
    {
        "report": {"jinja2": "jinja2", "matplotlib": "matplotlib", "PIL": "pillow"},
        "sweep": {"optuna": "optuna", "pandas": "pandas", "pyarrow": "pyarrow", "tensorboardX": "tensorboardX"},
        "data": {"datasets": "datasets", "pandas": "pandas", "pyarrow": "pyarrow"},
        "tracking": {"tensorboard": "tensorboard"},
        "gguf": {"gguf": "gguf"},
        "quantization": {
            "bitsandbytes": "bitsandbytes",
            "compressed_tensors": "compressed-tensors",
            "torchao": "torchao",
        },
    }
)
"""Extra -> its modules, each with the distribution that holds the module. `sweep` brings `report` too."""


def missing(extra: str, *modules: str) -> list[str]:
    """List the distributions of an extra that are not installed. modules: those to look for; by default all of the extra."""
    known = EXTRAS[extra]
    return [known[name] for name in modules or known if find_spec(name) is None]


def install_command(extra: str) -> str:
    """Return the command that installs an extra into the environment of this package."""
    return f"pip install 'bigcircuit[{extra}]'"


def need(subject: str, extra: str, *modules: str) -> None:
    """Raise UserError, with the command that installs the extra, where a module is missing. subject: what needs the modules."""
    if absent := missing(extra, *modules):
        raise UserError(f"{subject} needs {', '.join(absent)}; {install_command(extra)}")
