"""State that the hooks of one pass share."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.data.collate import Batch
from bigcircuit.forward.corrupted import Corrupted
from bigcircuit.forward.experts import Added
from bigcircuit.forward.rows import ArgumentShapes, Division, FewTokens, Rows, TokenRows
from bigcircuit.forward.shared_layers import Branches

SiteMasks = dict[str, Tensor]
"""Effective masks of one layer by site, each [P, R or 1, n]; an absent site is open."""
MaskSource = Callable[[int], SiteMasks]
"""Layer index -> its effective masks. Called again when a layer is recomputed, and must return the same masks."""
Watcher = Callable[[int, str, Tensor], None]
"""Callback with layer index, site and activations [R, T, n]; must not keep a reference to the activations."""


class ExpertWatcher(NamedTuple):
    """Callback for the values of experts in plain passes, which only some passes look at."""

    sites: Collection[str]
    """EXPERT, EXPERT_NEURON or both. Values of neurons need experts that show them, see `expert_neurons.refusal`."""
    see: Callable[[int, str, Added], None]
    """Layer index, site and values of all tokens [R * T]; must not keep a reference to them."""


@dataclass
class Pass:
    """A pass in progress. `recorded`: corrupted site inputs of the layer in progress.

    members: P, of the layer in progress where members share layers. store: activations of the corrupted run, for a pass over the
    suffix. columns: number of the last columns that are needed of the last layer, None for all. branches: members that share
    layers. shapes: where those of arguments are noted.
    head_inputs: of a pass over windows, [P, S, D].
    """

    batch: Batch | TokenRows | FewTokens
    masks: MaskSource | None
    members: int
    rows: Rows
    ablation: Ablation
    watch: Watcher | None = None
    watch_experts: ExpertWatcher | None = None
    store: Corrupted | None = None
    columns: int | None = None
    branches: Branches | None = None
    corrupted: Tensor | None = None
    recording: bool = False
    recorded: dict[str, Any] = field(default_factory=dict)
    site_masks: SiteMasks = field(default_factory=dict)
    division: Division | None = None
    shapes: ArgumentShapes | None = None
    head_inputs: Tensor | None = None
    layer: int = 0

    def masks_of(self, layer: int) -> SiteMasks:
        """Return the masks of a layer, of one member of each branch where members share layers."""
        assert self.masks is not None  # else the layer's own forward runs
        found = self.masks(layer)
        return found if self.branches is None else {s: m[self.branches.members[layer]] for s, m in found.items()}

    @contextmanager
    def corrupted_run(self) -> Iterator[None]:
        """Record site inputs inside the context, instead of masking them."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False
