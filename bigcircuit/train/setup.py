"""What runs stand on and share: model, pairs, ablation, and what the full model says."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bigcircuit.ablation.ablation import Moments
from bigcircuit.attribution.mask_gradients import integrated_gradients, rank_scores
from bigcircuit.config.schema import Config, TrainConfig
from bigcircuit.data.collate import train_order
from bigcircuit.data.dataset import AblationData, TaskData, load_ablation_data, load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.activation_means import starting_ablation
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.members import node_counts
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import GRANULARITIES
from bigcircuit.model.load import load_config, load_frozen, load_tokenizer, skeleton
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.zero3 import read_deepspeed
from bigcircuit.runtime.host_memory import give_freed_memory_back, saves_memory
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.train.fingerprint import run_fingerprint
from bigcircuit.train.pair_filters import keep_solved, swap_pairs
from bigcircuit.train.targets import check_targets


class ResolvedRun(NamedTuple):
    """What is known before weights are loaded."""

    config: Config
    tokenizer: Any
    data: TaskData
    reference: AblationData | None
    """What means are taken over, where it is not the pairs of the training."""
    passes: MicroBatches
    base: Mapping[str, str]
    """Hashes of model and pairs, see identity.py."""


def resolve(config: Config, ranks: Ranks) -> ResolvedRun:
    """Read and check all but the weights. Raises UserError."""
    tokenizer, data, reference = resolve_data(config)
    return ResolvedRun(
        config, tokenizer, data, reference, MicroBatches.of(config, ranks), run_fingerprint(config, data, reference)
    )


def resolve_data(config: Config) -> tuple[Any, TaskData, AblationData | None]:
    """Tokenizer, pairs and reference, with the rest of the settings checked against them. Raises UserError."""
    hf_config = load_config(config.model)
    tokenizer = load_tokenizer(config.model)
    data = load_task(config.task, tokenizer, hf_config)
    reference = load_ablation_data(config, tokenizer, hf_config)
    check_targets(config, node_counts(skeleton(config.model).shapes, list(GRANULARITIES)))
    read_deepspeed(config.deepspeed)
    return tokenizer, data, reference


class RunContext(NamedTuple):
    """The model masked, and the pairs that are left."""

    prepared: ResolvedRun
    data: TaskData
    streams: Streams
    """To be entered around all passes."""
    moments: Moments | None
    """Where learned constants start."""

    @property
    def config(self) -> Config:
        return self.prepared.config

    @property
    def passes(self) -> MicroBatches:
        return self.prepared.passes

    @property
    def nodes(self) -> dict[str, int]:
        """How many the model has, by granularity and as `total`."""
        return node_counts(self.streams.frozen.shapes, list(GRANULARITIES))

    def population(self, configs: Sequence[Config]) -> Population:
        """New members of these settings."""
        population = Population.new(configs, self.streams.frozen.shapes, self.passes.ranks.device)
        if self.config.ablation.kind == "optimal" and self.moments is not None:
            population.start_constants(self.moments)
        return population

    def warm(self, population: Population) -> None:
        """Shift the gates of new members by attribution, where the settings ask for it. Within the streams."""
        gates = self.config.gates
        if gates.warm_start == "integrated_gradients":
            examples = self.data.splits["train"]
            scores = integrated_gradients(self.streams, examples, self.passes, points=gates.warm_start_points)
            population.shift_neurons(rank_scores(scores))

    @property
    def shuffled(self) -> int | None:
        """The seed by which labels are shuffled, for the control."""
        return self.config.task.seed if self.config.task.labels == "random" else None

    def training_examples(self) -> list[Example]:
        """What batches are dealt from. Within the streams."""
        examples = self.data.splits["train"]
        return swap_pairs(self.streams, examples, self.passes) if self.config.train.both_ways else examples

    def training(self, examples: Sequence[Example], steps: int) -> Targets:
        """Those of the examples that so many steps use, with the full model's logits. Within the streams.

        The same for a resumed run, so that it computes the same logits to the bit.
        """
        used = _used(examples, self.config.train, self.config.task.seed, steps)
        return Targets(used, ReferenceLogits(self.streams, used, self.passes, shuffled=self.shuffled), full=False)

    def validation(self) -> Targets:
        """What gates are chosen by. Within the streams."""
        held_out = self.data.splits["validation"] or self.data.splits["train"]
        references = ReferenceLogits(self.streams, held_out, self.passes, full=True, shuffled=self.shuffled)
        return Targets(held_out, references, full=True)


def set_up(prepared: ResolvedRun, display: ProgressDisplay, frozen: FrozenModel | None = None) -> RunContext:
    """Load the weights and leave out what the full model does not solve, if asked. Raises UserError.

    frozen: the model, where it is loaded already.
    """
    config, passes = prepared.config, prepared.passes
    sharding = read_deepspeed(config.deepspeed)
    if saves_memory(config, sharding is not None):
        give_freed_memory_back()
    if frozen is None:
        frozen = load_frozen(config.model, passes.ranks.device, sharding)
    data = keep_solved(config, frozen, prepared.data, passes, display)
    averaged = data.splits["train"] if prepared.reference is None else prepared.reference.examples
    ablation, moments = starting_ablation(config.ablation, frozen, averaged, passes)
    return RunContext(prepared, data, Streams(frozen, ablation, config.train.checkpointing), moments)


def _used(examples: Sequence[Example], settings: TrainConfig, seed: int, steps: int) -> list[Example]:
    orders = (train_order(len(examples), settings.batch_size, step, seed) for step in range(steps))
    return [examples[index] for index in sorted({index for order in orders for index in order})]
