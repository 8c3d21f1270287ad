"""Paths of the modules of a dense decoder layer, for what rewrites them by name, and widths of projections."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from bigcircuit.model.architectures import FUSED, KEYS, QUERIES, VALUES


class ModulePaths(NamedTuple):
    """`layers` is relative to the model, the others to a decoder layer."""

    layers: str
    """List of decoder layers."""
    attention: str
    """Attention output projection."""
    mlp: str
    """MLP down projection."""
    qkv: tuple[str, ...]
    """Query, key and value projections, or the one projection that computes all three."""
    mlp_inputs: tuple[str, ...]
    """Projections that compute the MLP neurons: (up,), (gate, up) or the one projection that computes both."""


def module_paths(layers: str, layer: nn.Module, attention: nn.Module, mlp: nn.Module) -> ModulePaths:
    """Find the paths in a layer. layers: path of the list of layers. attention, mlp: output projections."""
    names = {id(module): name for name, module in layer.named_modules()}
    modules = dict(layer.named_modules())
    beside = names[id(attention)].rpartition(".")[0]
    known = [f"{beside}.{name}" if beside else name for name in (*QUERIES, *KEYS, *VALUES, *FUSED)]
    return ModulePaths(
        layers=layers,
        attention=names[id(attention)],
        mlp=names[id(mlp)],
        qkv=tuple(name for name in known if name in modules),
        mlp_inputs=tuple(names[id(module)] for module in inputs_of_mlp(modules, names[id(mlp)])),
    )


def inputs_of_mlp(modules: Mapping[str, nn.Module], down: str) -> list[nn.Module]:
    """List the projections beside a down projection that compute its inputs. modules: of the layer by path."""
    projection, owner = modules[down], modules[down.rpartition(".")[0]]
    hidden, width = out_features(projection), in_features(projection)
    beside = [module for module in owner.children() if module is not projection and in_features(module) == hidden]
    return [module for module in beside if out_features(module) in (width, 2 * width)]


def in_features(projection: Any) -> int:
    """Return the input width of a projection: a Linear, an adapted Linear, or GPT-2's Conv1D (`nx`); 0 for other modules."""
    found = getattr(projection, "in_features", None) or getattr(projection, "nx", 0)
    return found if isinstance(found, int) else 0


def out_features(projection: Any) -> int:
    """Return the output width of a projection; in GPT-2's Conv1D `nf`."""
    return getattr(projection, "out_features", None) or projection.nf
