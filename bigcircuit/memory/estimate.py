"""Predict the memory of a rank before a byte of weights is loaded.

The update itself is run on the meta device, where tensors have shapes and no data, and the tensors that are alive at once
are counted.
"""

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO, Ablation, Moments, widest
from bigcircuit.config.load import members, override
from bigcircuit.config.schema import Config
from bigcircuit.data.collate import Batch, scored_positions
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.members import node_counts
from bigcircuit.gates.population import Population
from bigcircuit.metrics.logit_metrics import kl_divergence
from bigcircuit.model.granularity import SITE_WIDTH
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.zero3 import DeepSpeedConfig, completed, numel
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import faithfulness

META = torch.device("meta")


class Workload(NamedTuple):
    """What decides the memory besides model and config."""

    tokens: int
    """Of the longest prompt with its answer."""
    answer: int
    """Scored positions of a prompt: tokens of its first answer."""
    rows: int
    """Rows of a prompt in scoring: one for every way its answers go on."""
    trained: int
    """Scored positions of all training prompts: their logits in the full model are kept."""
    validated: int
    """Of all validation prompts."""
    ranks: int = 1

    @classmethod
    def of(cls, splits: dict[str, list[Example]], ranks: int) -> "Workload":
        """The largest of a run's examples."""
        everything = [example for examples in splits.values() for example in examples]
        return cls(
            max(len(e.clean) + max(map(len, e.answers)) - 1 for e in everything),
            max(len(one) for e in everything for one in (*e.answers[:1], *e.wrong_answers[:1])),
            max(len({c[:-1] for c in (*e.answers, *e.wrong_answers)}) for e in everything),
            sum(len(e.answers[0]) for e in splits["train"]),
            sum(scored_positions(e, full=True) for e in splits["validation"] or splits["train"]),
            ranks,
        )


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are made inside and are alive, each storage once, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {_storage(value) for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_iter(result):
            if isinstance(value, Tensor) and _storage(value) not in known | self._alive:
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


KnownPeaks = dict[tuple[int, str, bool | str], int]
"""Peaks of activations by what may be changed to make a run fit: pairs at once, dtype, checkpointing."""


def estimate(
    frozen: FrozenModel,
    config: Config,
    settings: DeepSpeedConfig | None,
    work: Workload,
    known: KnownPeaks | None = None,
) -> dict[str, int]:
    """Bytes by what needs them at the peak of a rank; `frozen` is on meta, `settings` as from `read_settings`.

    known: what other settings of the same run were found to need, and is not counted again.
    """
    weights = _weights(frozen, settings, work.ranks)
    trained = sum(p.numel() for p in _state(frozen, config).parameters)
    vocabulary, element = frozen.head.weight.shape[0], frozen.head.weight.element_size()
    positions = work.trained * (2 if config.train.both_ways else 1) + work.validated
    return (
        weights
        | _constants(frozen, config, work)
        | {
            "gates, Adam moments and sums": (3 * 4 + 8) * trained,
            "reference logits": positions * vocabulary * element,
            "activations and gradients": _activations(frozen, config, work, {} if known is None else known),
        }
    )


def _activations(frozen: FrozenModel, config: Config, work: Workload, known: KnownPeaks) -> int:
    key = MicroBatches.of(config, Ranks(0, work.ranks, META)).size, config.model.dtype, config.train.checkpointing
    if key not in known:
        known[key] = max(training_peak(frozen, config, work), scoring_peak(frozen, config, work))
    return known[key]


def _weights(frozen: FrozenModel, settings: DeepSpeedConfig | None, ranks: int) -> dict[str, int]:
    parameters = list(frozen.model.parameters())
    whole = sum(p.numel() * p.element_size() for p in parameters)
    if settings is None:
        return {"frozen weights": whole}
    zero = completed(settings, frozen)["zero_optimization"]
    largest = max(sum(map(numel, layer.module.parameters())) for layer in frozen.layers)
    held = min(max(zero["stage3_max_live_parameters"], largest), sum(p.numel() for p in parameters))
    held = max(held, max(p.numel() for p in parameters)) * parameters[0].element_size()
    offloaded = torch.cuda.is_available() and "offload_param" in zero
    # Measured on CPU (benchmarks/memory.md): a gather through gloo needs its flat result and a copy of it besides.
    buffers = 0 if torch.cuda.is_available() else 2 * largest * parameters[0].element_size()
    return {"this rank's piece of the weights": 0 if offloaded else whole // ranks, "gathered weights": held + buffers}


def training_peak(frozen: FrozenModel, config: Config, work: Workload) -> int:
    """Most bytes alive in one micro-batch of an update, forward and backward."""
    state, passes = _state(frozen, config), MicroBatches.of(config, Ranks(0, work.ranks, META))
    batch = _batch(passes.size, work)

    class One(MicroBatches):
        def over(self, *_: Any, **__: Any) -> Iterator[MicroBatch]:
            yield MicroBatch(examples, batch, True)

    examples = [Example(index, (), (), (), (), "") for index in range(passes.size)]
    vocabulary = frozen.head.weight.shape[0]
    reference = torch.empty(passes.size * work.answer, vocabulary, dtype=frozen.head.weight.dtype, device=META)
    ablation = _ablation(frozen, config, work)
    with Streams(frozen, ablation, config.train.checkpointing) as streams, LiveBytes() as live:
        faithfulness(state, streams, lambda _: reference, examples, One(passes.size, Ranks(device=META)))
    return live.peak


@torch.no_grad()
def scoring_peak(frozen: FrozenModel, config: Config, work: Workload) -> int:
    """Most bytes alive while all members and the empty circuit are scored."""
    passes, count = MicroBatches.of(config, Ranks(0, work.ranks, META)), len(members(config)) + 1
    batch = _batch(passes.size * work.rows, work)

    def masks(index: int) -> dict[str, Tensor]:
        shape = frozen.shapes[index]
        return {site: torch.ones(count, 1, width(shape), device=META) for site, width in SITE_WIDTH.items()}

    with Streams(frozen, _ablation(frozen, config, work)) as streams, LiveBytes() as live:
        kl_divergence(streams.reference(batch), streams.masked(batch, masks, count), batch)
    return live.peak


def _state(frozen: FrozenModel, config: Config) -> TrainState:
    # The hinge looks at values, which the meta device does not have; it is a few numbers a prompt.
    configs = [override(member, {"train.hinge": 0.0}, "estimate") for member in members(config)]
    population = Population.new(configs, frozen.shapes, META)
    if config.ablation.kind == "optimal":
        population.start_constants(_moments(frozen, positions=1))
    return TrainState.new(population, node_counts(frozen.shapes, config.gates.granularities))


def _moments(frozen: FrozenModel, positions: int) -> Moments:
    sizes = {site: (len(frozen.shapes), positions, widest(frozen.shapes, site)) for site in SITE_WIDTH}
    mean = {site: torch.empty(size, device=META) for site, size in sizes.items()}
    return Moments(mean, {site: values[:, 0] for site, values in mean.items()})


def _ablation(frozen: FrozenModel, config: Config, work: Workload) -> Ablation:
    """The ablation of the run with constants that have shapes and no data."""
    if config.ablation.kind in (INTERCHANGE.name, ZERO.name):
        return Ablation(config.ablation.name)
    mean = _moments(frozen, work.tokens + 1 if config.ablation.per_position else 1).mean
    return Ablation(config.ablation.name, {site: values.unsqueeze(0) for site, values in mean.items()})


def _constants(frozen: FrozenModel, config: Config, work: Workload) -> dict[str, int]:
    """Bytes of the constants; where they are learned also of their start and unit."""
    constants = _ablation(frozen, config, work).constants or {}
    copies = 3 if config.ablation.kind == "optimal" else 1
    return {"ablation constants": 4 * copies * sum(map(Tensor.numel, constants.values()))} if constants else {}


def _batch(rows: int, work: Workload) -> Batch:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.long, device=META)

    grid, line, scores = zeros(rows, work.tokens), zeros(rows), zeros(rows * work.answer)
    # A finished 4-D mask keeps transformers from looking into a mask that has no data.
    mask = torch.zeros(rows, 1, work.tokens, work.tokens, dtype=torch.bool, device=META)
    return Batch(
        grid,
        grid,
        mask,
        None,
        line,
        line,
        scores,
        scores,
        scores,
        scores.float(),
        scores,
        scores,
        scores,
        line,
        line > 0,
    )
