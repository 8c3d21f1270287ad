"""What an export is asked for, and what a format plans to write."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.errors import UserError
from bigcircuit.export.cut import LayerCut, cuts_in_place, with_all_heads
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.tensors import LayerParts
from bigcircuit.model.granularity import ATTENTION, EXPERT, MLP
from bigcircuit.model.resolve import ResolvedModel
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.weight_files import model_folder

_NOT_CUT = {
    "bitnet": "its norms go over all attention and MLP neurons together",
    "bloom": "the position bias of a head depends on the number of heads",
    "codegen": "its projection for queries, keys and values is divided into parts of several heads",
    "diffllama": "its heads work in pairs",
    "doge": "its attention has parameters that mix heads",
    "gpt_neox_japanese": "its projection for queries, keys and values has them head by head",
    "granite_swa": "its attention has a parameter for each head",
    "mpt": "the position bias of a head depends on the number of heads",
    "persimmon": "its projection for queries, keys and values has them head by head",
}
"""Dense model type -> why its heads and neurons cannot be taken out."""


@dataclass(frozen=True)
class ExportRequest:
    """A circuit that is to be frozen into weights."""

    model: ResolvedModel
    masks: Mapping[str, Tensor]
    """Granularity -> bool [L, n]."""
    ablation: Ablation
    """Zero, or constants that are the same at all positions."""
    multiple_of: int = 1
    """MLP widths are padded to a multiple of this."""

    @property
    def is_dense(self) -> bool:
        """Whether every layer is an attention and one MLP."""
        return all(layer.sites.keys() == {ATTENTION, MLP} for layer in self.base.layers)

    def check_layers(self, name: str, *, alike: bool = True) -> None:
        """Raises UserError for layers that a format cannot hold: it names their kind.

        name: of the format; alike: whether all layers have to have the same widths, with rows of their own for each head.
        """
        subject = f"--format {name}: {self.hf_config.model_type} ({self.base.architecture.kind})"
        remedy = "use --format zeroed, or evaluate the circuit in place"
        if alike and any(EXPERT in layer.sites for layer in self.base.layers):
            raise UserError(
                f"{subject} routes tokens among all of its experts, and a stock class cannot do without some of them; use --format "
                "compact or zeroed, or evaluate the circuit in place"
            )
        if not self.is_dense:
            raise UserError(
                f"{subject} has layers that are not one attention and one MLP, which this format cannot cut; {remedy}"
            )
        if not alike:
            return
        if why := _NOT_CUT.get(self.hf_config.model_type):
            raise UserError(f"{subject} cannot be cut, because {why}; {remedy}")
        if len(set(self.base.shapes)) > 1:
            raise UserError(f"{subject} has layers of different widths, and this format takes equal ones; {remedy}")
        if len(self.base.paths.qkv) not in (1, 3):
            raise UserError(
                f"{subject} has heads without rows of their own in its query, key and value projections; {remedy}"
            )

    @property
    def has_rows_of_nodes(self) -> bool:
        """Whether it is known which rows of the weights of a layer compute a head or an MLP neuron."""
        known = self.is_dense and self.hf_config.model_type not in _NOT_CUT
        return known and len(self.base.paths.qkv) in (1, 3)

    def padded_width(self, neurons: int) -> int:
        """Width of an MLP that keeps so many neurons; no more than that of the base."""
        width = -(-max(neurons, 1) // self.multiple_of) * self.multiple_of
        return max(min(width, self.base.shapes[0].intermediate), neurons)

    @property
    def base(self) -> FrozenModel:
        """The base model on the meta device."""
        return self.model.skeleton

    @property
    def hf_config(self) -> Any:
        """The Hugging Face config of the base model."""
        return self.base.model.config

    @property
    def beside(self) -> Path | None:
        """Folder with tokenizer and licence of the base model."""
        return model_folder(self.model.config.path, self.model.config.revision)

    @cached_property
    def cuts(self) -> list[LayerCut]:
        """A cut of every layer that leaves all shapes as they are."""
        cuts = cuts_in_place(self.masks, self.base.shapes, self.ablation)
        return [with_all_heads(cut) for cut in cuts] if self.fixed_heads else cuts

    @cached_property
    def fixed_heads(self) -> str | None:
        """Why no head can go without changing what the others compute; None where heads can go."""
        if getattr(self.hf_config, "alibi", False):
            return "the position bias of a head depends on the number of heads"
        layer = self.base.layers[0]
        parts = LayerParts(self.hf_config.model_type, self.base.paths, layer.shape, hasattr(layer.attention, "nx"))
        mixed = any(parts.mixes_heads(name, parameter.shape) for name, parameter in layer.module.named_parameters())
        return "a norm goes over all heads together" if mixed else None

    @property
    def biased(self) -> tuple[bool, bool]:
        """Whether constants ask for a bias of attention outputs, and of MLP outputs, in some layer."""
        return any(cut.biased[0] for cut in self.cuts), any(cut.biased[1] for cut in self.cuts)


Write = Callable[[Path, SourceWeights, Callable[[int], None]], None]
"""Writes into a folder that exists; calls back with the number of bytes written since the call before."""


class PreparedExport(NamedTuple):
    """The plan of an export."""

    write: Write
    bytes: int
    """About how much is written."""
    parameters: int
    """Parameters of the written model; of an adapter, its own."""
    sizes: Sequence[str]
    """Sizes of the written model, a phrase each."""
    notes: Sequence[str] = ()
    """What the user ought to know, a sentence each."""
