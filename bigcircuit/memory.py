"""Predict the memory of a rank before a byte of weights is loaded.

The pass itself is run on the meta device, where tensors have shapes and no data, and what autograd would keep is counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bigcircuit.config import Config
from bigcircuit.config_file import members
from bigcircuit.frozen.sites import FrozenModel
from bigcircuit.gates.granularity import MLP_OUTPUT, SITE_WIDTH
from bigcircuit.gates.population import node_counts
from bigcircuit.streams import Streams
from bigcircuit.tasks.batch import Batch

_FLOAT = 4


class SavedBytes:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters excluded."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._known = {_storage(parameter) for parameter in model.parameters()}
        self._kept: list[Tensor] = []  # a meta storage must stay alive for its address to stay its own
        self.total = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """The pack hook."""
        key = _storage(tensor)
        if key not in self._known:
            self._known.add(key)
            self._kept.append(tensor)
            self.total += tensor.untyped_storage().nbytes()
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def count_saved(model: torch.nn.Module) -> Iterator[SavedBytes]:
    """Count what is saved for backward inside the context."""
    counter = SavedBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(counter, lambda tensor: tensor):
        yield counter


def estimate(frozen: FrozenModel, config: Config, tokens: int) -> dict[str, int]:
    """Bytes by what needs them, for a batch of `train.batch_size` prompts of `tokens` tokens; `frozen` is on meta."""
    configs = members(config)
    nodes = node_counts(frozen.shapes, config.gates.granularities)
    gates = _FLOAT * len(configs) * sum(count for name, count in nodes.items() if name != "total")
    weights = sum(p.numel() * p.element_size() for p in frozen.model.parameters())
    rows, vocabulary = config.train.batch_size, frozen.head.weight.shape[0]
    widest = max(shape.intermediate for shape in frozen.shapes)
    element = next(frozen.model.parameters()).element_size()
    streams = len(configs) + (config.ablation.kind == "interchange")
    return {
        "frozen weights": weights,
        "gates, their gradients and Adam moments": 5 * gates,
        "saved for backward": saved_for_backward(frozen, config, tokens),
        "one layer in flight": 4 * streams * rows * tokens * widest * element,
        "logits and their gradients": 6 * len(configs) * rows * vocabulary * _FLOAT,
    }


def saved_for_backward(frozen: FrozenModel, config: Config, tokens: int) -> int:
    """Bytes that autograd keeps in one update, counted in a pass on the meta device."""
    count, rows = len(members(config)), config.train.batch_size
    batch = _meta_batch(rows, tokens)
    sites = [site for site in SITE_WIDTH if site != MLP_OUTPUT or MLP_OUTPUT in config.gates.granularities]

    def masks(index: int) -> dict[str, Tensor]:
        widths = {site: SITE_WIDTH[site](frozen.shapes[index]) for site in sites}
        return {s: torch.ones(count, rows, width, device="meta", requires_grad=True) for s, width in widths.items()}

    with (
        Streams(frozen, config.ablation.kind, config.train.checkpointing) as streams,
        count_saved(frozen.model) as saved,
    ):
        streams.masked(batch, masks, count)
    return saved.total


def _meta_batch(rows: int, tokens: int) -> Batch:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.long, device="meta")

    grid, line = zeros(rows, tokens), zeros(rows)
    # A finished 4-D mask keeps transformers from looking into a mask that has no data.
    mask = torch.zeros(rows, 1, tokens, tokens, dtype=torch.bool, device="meta")
    return Batch(grid, grid, mask, None, line, line, line, line, line, line.float(), line, line, line, line, line > 0)
