"""Predict the memory of a rank before a byte of weights is loaded.

The update itself is run on the meta device, where tensors have shapes and no data, and the tensors that are alive at once
are counted.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bigcircuit.ablation.ablation import Ablation, Moments, widest
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.config.load import override
from bigcircuit.data.collate import Batch, count_scored_positions
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.memory.shortened import from_few_layers
from bigcircuit.metrics.logit_metrics import kl_divergence
from bigcircuit.model.granularity import SITE_WIDTH
from bigcircuit.model.resolve import ResolvedModel
from bigcircuit.model.zero3 import numel, with_auto_values
from bigcircuit.train.resolve import ResolvedRun
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import faithfulness_gradient

META = torch.device("meta")
_FEW = 3
"""Layers from which on every further one adds the same to a peak, without checkpointing."""


class Workload(NamedTuple):
    """Sizes that decide the memory besides model and config."""

    tokens: int
    """Tokens of the longest prompt with its answer."""
    answer: int
    """Scored positions of a prompt: tokens of its first answer."""
    rows: int
    """Rows of a prompt in scoring: one for every distinct beginning of its answers."""
    trained: int
    """Scored positions of all training prompts, whose reference logits are kept."""
    validated: int
    """Scored positions of all validation prompts."""
    ranks: int = 1

    @classmethod
    def of(cls, splits: Mapping[str, list[Example]], ranks: int) -> "Workload":
        """Measure the largest of a run's examples."""
        everything = [example for examples in splits.values() for example in examples]
        return cls(
            max(len(e.clean) + max(map(len, e.answers)) - 1 for e in everything),
            max(len(one) for e in everything for one in (*e.answers[:1], *e.wrong_answers[:1])),
            max(len({c[:-1] for c in (*e.answers, *e.wrong_answers)}) for e in everything),
            sum(len(e.answers[0]) for e in splits["train"]),
            sum(count_scored_positions(e, full=True) for e in splits["validation"] or splits["train"]),
            ranks,
        )


class LiveBytes(TorchDispatchMode):
    """Counter of the bytes of tensors made inside that are alive, each storage once: `now`, and the most ever, `peak`."""

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


KnownPeaks = dict[tuple[int, str, bool | str | None], int]
"""Peaks of activations by the settings that remedies change: pairs at once, dtype, checkpointing (None: of scoring)."""


def estimate(
    run: ResolvedRun, work: Workload, known: KnownPeaks | None = None, *, on_gpus: bool = False
) -> dict[str, int]:
    """Predict the bytes of a rank at its peak, by purpose.

    on_gpus: whether the ranks run on GPUs, this machine's or others.
    known: peaks of activations under other settings of the same run, so that none is computed twice.
    """
    resting = resting_bytes(run, work, on_gpus)
    return {**resting, "activations and gradients": _activations(run, work, {} if known is None else known)}


def resting_bytes(run: ResolvedRun, work: Workload, on_gpus: bool) -> dict[str, int]:
    """Count the bytes that a rank holds between two passes, by purpose: a lower bound of `estimate` that takes no time."""
    head, train = cast(Tensor, run.model.skeleton.head.weight), run.config.train
    positions = work.trained * (2 if train.both_ways else 1) + work.validated
    return {
        **_weights(run.model, work.ranks, on_gpus),
        **_constants(run, work),
        "gates, Adam moments and sums": (3 * 4 + 8) * sum(p.numel() for p in blank_state(run, META).parameters),
        "reference logits": positions * head.shape[0] * head.element_size(),
    }


def _activations(run: ResolvedRun, work: Workload, known: KnownPeaks) -> int:
    size, dtype, checkpointing = (
        _micro_batches(run, work).max_examples,
        run.config.model.dtype,
        run.config.train.checkpointing,
    )
    for kind, peak in ((checkpointing, training_peak), (None, scoring_peak)):
        if (size, dtype, kind) not in known:
            known[size, dtype, kind] = peak(run, work)
    return max(known[size, dtype, checkpointing], known[size, dtype, None])


def _micro_batches(run: ResolvedRun, work: Workload) -> MicroBatches:
    """Micro-batches of rank 0 of the planned ranks, on the meta device."""
    return MicroBatches.of(run.config, Ranks(0, work.ranks, META))


def _weights(model: ResolvedModel, ranks: int, on_gpus: bool) -> dict[str, int]:
    frozen = model.skeleton
    parameters = list(frozen.model.parameters())
    whole = sum(p.numel() * p.element_size() for p in parameters)
    if model.deepspeed is None:
        return {"frozen weights": whole}
    zero = with_auto_values(model.deepspeed, frozen)["zero_optimization"]
    largest = max(sum(map(numel, layer.module.parameters())) for layer in frozen.layers)
    held = min(max(zero["stage3_max_live_parameters"], largest), sum(p.numel() for p in parameters))
    held = max(held, max(p.numel() for p in parameters)) * parameters[0].element_size()
    offloaded = on_gpus and "offload_param" in zero
    # Measured on CPU (benchmarks/memory.md): a gather through gloo needs its flat result and a copy of it besides.
    buffers = 0 if on_gpus else 2 * largest * parameters[0].element_size()
    return {"this rank's piece of the weights": 0 if offloaded else whole // ranks, "gathered weights": held + buffers}


def training_peak(run: ResolvedRun, work: Workload) -> int:
    """Compute the most bytes alive in one micro-batch of an update, forward and backward."""

    def count(few: ResolvedRun) -> int:
        return _peak(meta_update(few, work))

    # With checkpointing the peak is in another part of the pass in a model of few layers.
    return count(run) if run.config.train.checkpointing else from_few_layers(run, count, _FEW)


def _peak(run_pass: Callable[[], object]) -> int:
    with LiveBytes() as live:
        run_pass()
    return live.peak


def meta_update(run: ResolvedRun, work: Workload) -> Callable[[], object]:
    """Prepare one micro-batch of an update on the meta device, forward and backward, to be run under a dispatch mode."""
    frozen, size = run.model.skeleton, _micro_batches(run, work).max_examples
    batch = _batch(size, work)

    class OneBatch(MicroBatches):
        def iterate(self, *_: Any, **__: Any) -> Iterator[MicroBatch]:
            yield MicroBatch(examples, batch, True)

    nothing = Example(id=0, clean=(), corrupted=(), answers=(), wrong_answers=(), source="")
    examples = [nothing._replace(id=index) for index in range(size)]
    head = cast(Tensor, frozen.head.weight)
    reference = torch.empty(size * work.answer, head.shape[0], dtype=head.dtype, device=META)
    state, one_batch = blank_state(run, META), OneBatch(size, Ranks(device=META))
    streams = Streams(frozen, blank_ablation(run, work, META), run.config.train.checkpointing)

    def run_pass() -> object:
        with streams:
            return faithfulness_gradient(state, streams, lambda _: reference, examples, one_batch)

    return run_pass


def scoring_peak(run: ResolvedRun, work: Workload) -> int:
    """Compute the most bytes alive while all members and the empty circuit are scored."""
    return from_few_layers(run, lambda few: _peak(meta_scoring(few, work)), _FEW)


def meta_scoring(run: ResolvedRun, work: Workload) -> Callable[[], object]:
    """Prepare one micro-batch of the final scores on the meta device, to be run under a dispatch mode."""
    frozen, count = run.model.skeleton, len(run.members) + 1
    batch = _batch(_micro_batches(run, work).max_examples * work.rows, work)

    def masks(index: int) -> dict[str, Tensor]:
        shape = frozen.shapes[index]
        return {site: torch.ones(count, 1, width(shape), device=META) for site, width in SITE_WIDTH.items()}

    streams = Streams(frozen, blank_ablation(run, work, META))

    def run_pass() -> object:
        with torch.no_grad(), streams:
            return kl_divergence(streams.reference(batch), streams.masked(batch, masks, count), batch)

    return run_pass


def blank_state(run: ResolvedRun, device: torch.device) -> TrainState:
    """Make the state at step 0 of a run whose ablation is not measured."""
    # The hinge looks at values, which the meta device does not have; it is a few numbers a prompt.
    configs = [override(member, {"train.hinge": 0.0}, "estimate") for member in run.members]
    population = Population.new(configs, run.model.shapes, device)
    if KINDS[run.config.ablation.name].learned:
        population.start_constants(_moments(run, 1, device))
    return TrainState.new(population, run.model.nodes)


def _moments(run: ResolvedRun, positions: int, device: torch.device) -> Moments:
    shapes = run.model.shapes
    sizes = {site: (len(shapes), positions, widest(shapes, site)) for site in SITE_WIDTH}
    mean = {site: torch.zeros(size, device=device) for site, size in sizes.items()}
    return Moments(mean, {site: values[:, 0] for site, values in mean.items()})


def blank_ablation(run: ResolvedRun, work: Workload, device: torch.device) -> Ablation:
    """Make the ablation of a run with constants of 0 in place of measured ones."""
    settings = run.config.ablation
    return _moments(run, work.tokens + 1 if settings.per_position else 1, device).ablation(settings.name)


def _constants(run: ResolvedRun, work: Workload) -> dict[str, int]:
    """Bytes of the ablation's tensors; where these are learned, three times: with their start and unit."""
    ablation = blank_ablation(run, work, META)
    tensors = [one for found in ablation.tensors().values() for one in found.values()]
    copies = 3 if ablation.kind.learned else 1
    return {"ablation constants": 4 * copies * sum(map(Tensor.numel, tensors))} if tensors else {}


def _batch(rows: int, work: Workload) -> Batch:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.long, device=META)

    grid, line, scores = zeros(rows, work.tokens), zeros(rows), zeros(rows * work.answer)
    # A finished 4-D mask keeps transformers from looking into a mask that has no data.
    mask = torch.zeros(rows, 1, work.tokens, work.tokens, dtype=torch.bool, device=META)
    return Batch(
        clean=grid,
        corrupted=grid,
        attention_mask=mask,
        position_ids=grid,
        ids=line,
        example_of_row=line,
        score_row=scores,
        score_position=scores,
        example_of_score=scores,
        kl_weight=scores.float(),
        token_score=scores,
        token_id=scores,
        continuation_of_token=scores,
        example_of_continuation=line,
        correct=line > 0,
    )
