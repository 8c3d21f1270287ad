"""Predict the memory of a rank before a byte of weights is loaded.

The update itself is run on the meta device, where tensors have shapes and no data, and the tensors that are alive at once
are counted.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bigcircuit.ablation.ablation import Ablation, Moments
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.config.load import override
from bigcircuit.data.collate import Batch, count_scored_positions, shared_prefix
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.corrupted_store import Lengths, stored_values
from bigcircuit.forward.store_memory import is_in_file
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import discretise
from bigcircuit.gates.members import trained_granularities
from bigcircuit.gates.population import Population
from bigcircuit.memory.shortened import from_few_layers
from bigcircuit.metrics.compare import compare_pass
from bigcircuit.model.deepspeed_config import pieces_on, with_auto_values
from bigcircuit.model.granularity import LEAVES, MLP_OUTPUT, SITE_WIDTH, measured_sites, sites_of, widest_values
from bigcircuit.model.quantization import weight_bytes_as
from bigcircuit.model.resolve import ResolvedModel
from bigcircuit.model.sites import FrozenModel
from bigcircuit.train.resolve import ResolvedRun
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import faithfulness_gradient
from bigcircuit.train.targets import shared_for
from bigcircuit.train.weight_copy import WeightCopy

META = torch.device("meta")
_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's own stage3_max_live_parameters, for config files that do not set it."""
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
    suffix: int | None = None
    """Most tokens behind the first that differ between the two prompts of a pair, with its answer; None for all."""
    stored: Lengths = Lengths(0, 0)
    """Tokens of all training prompts, whose corrupted activations are kept."""
    pairs: int = 0
    """Training pairs; 0 where updates see all of them."""
    windows: bool = False
    """Whether the examples are windows of text: inputs of the vocabulary projection stand for logits."""

    @classmethod
    def of(cls, splits: Mapping[str, list[Example]], ranks: int) -> "Workload":
        """Measure the largest of a run's examples."""
        everything = [example for examples in splits.values() for example in examples]
        return cls(
            tokens=max(len(e.clean) + max(map(len, e.answers)) - 1 for e in everything),
            answer=max(len(one) for e in everything for one in (*e.answers[:1], *e.wrong_answers[:1])),
            rows=max(len({c[:-1] for c in (*e.answers, *e.wrong_answers)}) for e in everything),
            trained=sum(len(e.answers[0]) for e in splits["train"]),
            validated=sum(count_scored_positions(e, full=True) for e in splits["validation"] or splits["train"]),
            ranks=ranks,
            suffix=max(
                len(e.clean) + max(map(len, e.answers)) - 1 - shared_prefix(e.clean, e.corrupted) for e in everything
            ),
            stored=Lengths.total(splits["train"]),
            pairs=len(splits["train"]),
            windows=everything[0].is_window,
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


class Estimate(NamedTuple):
    """Memory of a rank at its peak."""

    allocated: dict[str, int]
    """Bytes that nothing else can use, by purpose."""
    mapped: int = 0
    """Bytes of weights and scratch files that have to stay in memory for the run to be fast; the ranks of a host share them."""

    @property
    def total(self) -> int:
        """Allocated bytes of a rank."""
        return sum(self.allocated.values())

    def on_host(self, ranks: int) -> int:
        """Bytes that so many ranks on one host need."""
        return self.total * ranks + self.mapped


def estimate(run: ResolvedRun, work: Workload, is_gpu: bool, known: KnownPeaks | None = None) -> Estimate:
    """Predict the memory of a rank at its peak.

    is_gpu: whether passes run on a GPU, whose memory is meant, with what is kept on the host besides. known: peaks of activations
    under other settings of the same run, so that none is computed twice.
    """
    found = resting(run, work, is_gpu)
    peak = max(_activations(run, work, {} if known is None else known), _measuring(run, work))
    allocated = {**found.allocated, "activations and gradients": peak}
    if (more := ranking_peak(run) - allocated["activations and gradients"]) > 0:
        allocated["ranking of neurons, above that"] = more  # an update is over when circuits are decided
    return found._replace(allocated=allocated)


def resting(run: ResolvedRun, work: Workload, is_gpu: bool) -> Estimate:
    """Count the memory of a rank between two passes: a lower bound of `estimate` that takes no time."""
    head, train = cast(Tensor, run.model.skeleton.head.weight), run.config.train
    turns = 2 if train.both_ways and not work.windows else 1
    seen = turns * min(1, train.steps * train.batch_size / (turns * work.pairs or 1))
    positions = ceil(seen * work.trained) + work.validated
    weights, mapped = _weights(run.model, work.ranks, is_gpu)
    state = blank_state(run, META)
    allocated = {
        **weights,
        **_constants(run, work),
        "trained values, Adam moments and sums": (3 * 4 + 8) * sum(p.numel() for p in state.parameters),
        "reference logits": positions * head.shape[int(work.windows)] * head.element_size(),
    }
    if run.stores_corrupted:
        size = ceil(seen * stored_values(run.model.shapes, _sites(state), work.stored)) * head.element_size()
        if is_in_file(size, work.ranks, train.store_memory):
            mapped += size
        else:
            allocated["corrupted activations"] = size
    return Estimate(allocated, mapped)


def _sites(state: TrainState) -> list[str]:
    """Sites that masks may close."""
    draw = state.population.draw([0])
    return [*dict.fromkeys(site for index in range(len(state.population.shapes)) for site in draw(index))]


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


def _weights(model: ResolvedModel, ranks: int, is_gpu: bool) -> tuple[dict[str, int], int]:
    """Bytes that weights take: allocated, by purpose, and mapped from files that have to stay in memory."""
    sizes = [weight_bytes_as(layer.module, model.quantization) for layer in model.skeleton.layers]
    whole, largest = weight_bytes_as(model.skeleton.model, model.quantization), max(sizes)
    from_files = model.stays_in_files and not is_gpu
    if model.deepspeed is None:
        if model.config.weights == "resident":
            return ({}, whole) if from_files else ({"frozen weights": whole, **_dequantised(model)}, 0)
        if from_files:
            return {}, 0
        return {"two layers of weights": 2 * largest, "weights outside layers": whole - sum(sizes)}, 0
    if from_files and pieces_on(model.deepspeed) == "nvme":
        return {}, 0
    zero = with_auto_values(model.deepspeed, model.skeleton)["zero_optimization"]
    parameters = list(model.skeleton.model.parameters())
    live = zero.get("stage3_max_live_parameters", _LIVE_PARAMETERS)
    held = min(max(live * parameters[0].element_size(), largest), whole)
    if not from_files:  # then vocabulary matrices are gathered too
        held = max(held, *(p.numel() * p.element_size() for p in parameters))
    # Measured on CPU (benchmarks/memory.md): a gather through gloo needs its flat result and a copy of it besides.
    gathered = {"gathered weights": held + (0 if is_gpu else 2 * largest)}
    if from_files:
        return gathered, whole
    offloaded = is_gpu and pieces_on(model.deepspeed) != "none"
    return {"this rank's piece of the weights": 0 if offloaded else whole // ranks, **gathered}, 0


def _dequantised(model: ResolvedModel) -> dict[str, int]:
    """Bytes of the matrix that a quantised projection is dequantised to while it is used, in float32 and in its own dtype."""
    if model.quantization.bits is None:
        return {}
    largest = max(p.numel() for layer in model.skeleton.layers for p in layer.module.parameters())
    return {"a dequantised projection": largest * (4 + next(model.skeleton.model.parameters()).element_size())}


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
    batch = _batch(run, size, work)

    class OneBatch(MicroBatches):
        def iterate(self, *_: Any, **__: Any) -> Iterator[MicroBatch]:
            yield MicroBatch(examples, batch, True)

    nothing = Example(id=0, clean=(), corrupted=(), answers=(), wrong_answers=(), source="")
    examples = [nothing._replace(id=index) for index in range(size)]
    head = cast(Tensor, frozen.head.weight)
    reference = torch.empty(size * work.answer, head.shape[int(work.windows)], dtype=head.dtype, device=META)
    state, one_batch = blank_state(run, META), OneBatch(size, Ranks(device=META))
    streams = Streams(frozen, blank_ablation(run, work, META), run.config.train.checkpointing)

    with streams:
        recorded = streams.record(batch, _sites(state)) if run.stores_corrupted else None

    def run_pass() -> object:
        store = None if recorded is None else (lambda _: recorded)
        with streams, state.weights_in_model():
            return faithfulness_gradient(state, streams, lambda _: reference, examples, one_batch, store)

    return run_pass


def scoring_peak(run: ResolvedRun, work: Workload) -> int:
    """Compute the most bytes alive while all members and the empty circuit are scored."""
    return from_few_layers(run, lambda few: _peak(meta_scoring(few, work)), _FEW)


def ranking_peak(run: ResolvedRun) -> int:
    """Compute the most bytes alive while the circuit of a member is decided: it matters where a pass has a few tokens."""

    def count(few: ResolvedRun) -> int:
        member = few.members[0]
        population = Population.new([member], few.model.shapes, shared=shared_for([member], few.model.skeleton))
        return _peak(lambda: discretise(population.decided(0), few.model.shapes, member.target.sizes()))

    return from_few_layers(run, count, 1)


def meta_scoring(run: ResolvedRun, work: Workload) -> Callable[[], object]:
    """Prepare one micro-batch of the final scores on the meta device, to be run under a dispatch mode."""
    frozen, count = run.model.skeleton, len(run.members) + 1
    batch = _batch(run, _micro_batches(run, work).max_examples * work.rows, work)

    def masks(index: int) -> dict[str, Tensor]:
        shape = frozen.shapes[index]
        widths = {site: SITE_WIDTH[site](shape) for site in sites_of(frozen.shapes, (LEAVES[MLP_OUTPUT],))}
        return {site: torch.ones(count, 1, width, device=META) for site, width in widths.items() if width}

    streams = Streams(frozen, blank_ablation(run, work, META))

    def run_pass() -> object:
        with torch.no_grad(), streams:
            recorded = streams.record(batch, masks(0)) if streams.over_suffix else None
            return compare_pass(streams, batch, masks, count, streams.reference(batch), recorded).kl

    return run_pass


def blank_state(run: ResolvedRun, device: torch.device) -> TrainState:
    """Make the state at step 0 of a run whose ablation is not measured."""
    # The hinge looks at values, which the meta device does not have; it is a few numbers a prompt.
    configs = [override(member, {"train.hinge": 0.0}, "estimate") for member in run.members]
    population = Population.new(configs, run.model.shapes, device, shared_for(configs, run.model.skeleton))
    if KINDS[run.config.ablation.name].learned:
        population.start_constants(_moments(run, 1, device))
    weights = WeightCopy.asked_for(run.config.train, run.model.skeleton)
    return TrainState.new(population, run.model.nodes, weights)


def _moments(run: ResolvedRun, positions: int, device: torch.device) -> Moments:
    shapes = run.model.shapes
    sites = measured_sites(shapes, trained_granularities(run.members[0]))
    sizes = {site: (len(shapes), positions, widest_values(shapes, site)) for site in sites}
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


def _measuring(run: ResolvedRun, work: Workload) -> int:
    """Bytes of the sums from which constants are made, float64, beside the float32 results: before gates are trained."""
    if not KINDS[run.config.ablation.name].needs_moments:
        return 0
    found = _moments(run, work.tokens if run.config.ablation.per_position else 1, META)
    return sum(8 * mean.numel() for mean in found.mean.values()) + sum(
        (8 + 4) * deviation.numel() for deviation in found.deviation.values()
    )


def _batch(run: ResolvedRun, rows: int, work: Workload) -> Batch:
    frozen = run.model.skeleton

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.long, device=META)

    grid, line, scores = zeros(rows, work.tokens), zeros(rows), zeros(rows * work.answer)
    return Batch(
        clean=grid,
        corrupted=grid,
        attention_mask=_mask(frozen, rows, work.tokens),
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
        shared=0 if work.suffix is None else work.tokens - work.suffix,
        logit_chunk=run.config.task.text.logit_chunk if work.windows else None,
    )


def _mask(frozen: FrozenModel, rows: int, tokens: int) -> Tensor | None:
    """Make an attention mask that the model takes without looking into it, for it has no data on the meta device."""
    kind = frozen.architecture.meta_mask
    if kind == "flat":
        return torch.zeros(rows, tokens, dtype=torch.long, device=META)
    if kind == "none" or getattr(frozen.model.config, "alibi", False):
        return None
    return torch.zeros(rows, 1, tokens, tokens, dtype=torch.bool, device=META)
