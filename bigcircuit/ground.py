"""What runs stand on and share: model, pairs, ablation, and what the full model says."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bigcircuit.ablated import ZERO, Moments
from bigcircuit.ablation import starting_ablation
from bigcircuit.config import Config, TrainConfig
from bigcircuit.display import Display
from bigcircuit.distributed import Ranks
from bigcircuit.errors import UserError
from bigcircuit.evaluation.attribution import integrated_gradients, rank_scores
from bigcircuit.evaluation.scores import score
from bigcircuit.frozen.load import load_config, load_frozen, load_tokenizer, skeleton
from bigcircuit.frozen.sites import FrozenModel
from bigcircuit.gates.granularity import GRANULARITIES
from bigcircuit.gates.population import Population, node_counts
from bigcircuit.identity import identity
from bigcircuit.optimal import Lessons
from bigcircuit.plan import give_freed_memory_back, saves_memory
from bigcircuit.references import References
from bigcircuit.sharding import read_settings
from bigcircuit.streams import Streams
from bigcircuit.targets import check_targets
from bigcircuit.tasks.batch import train_order
from bigcircuit.tasks.both_ways import both_ways
from bigcircuit.tasks.data import Reference, TaskData, load_reference, load_task
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes


class Prepared(NamedTuple):
    """What is known before weights are loaded."""

    config: Config
    tokenizer: Any
    data: TaskData
    reference: Reference | None
    """What means are taken over, where it is not the pairs of the training."""
    passes: Passes
    base: Mapping[str, str]
    """Hashes of model and pairs, see identity.py."""


def prepare(config: Config, ranks: Ranks) -> Prepared:
    """Read and check all but the weights. Raises UserError."""
    tokenizer, data, reference = read(config)
    return Prepared(config, tokenizer, data, reference, Passes.of(config, ranks), identity(config, data, reference))


def read(config: Config) -> tuple[Any, TaskData, Reference | None]:
    """Tokenizer, pairs and reference, with the rest of the settings checked against them. Raises UserError."""
    hf_config = load_config(config.model)
    tokenizer = load_tokenizer(config.model)
    data = load_task(config.task, tokenizer, hf_config)
    reference = load_reference(config, tokenizer, hf_config)
    check_targets(config, node_counts(skeleton(config.model).shapes, list(GRANULARITIES)))
    read_settings(config.deepspeed)
    return tokenizer, data, reference


class Ground(NamedTuple):
    """The model masked, and the pairs that are left."""

    prepared: Prepared
    data: TaskData
    streams: Streams
    """To be entered around all passes."""
    moments: Moments | None
    """Where learned constants start."""

    @property
    def config(self) -> Config:
        return self.prepared.config

    @property
    def passes(self) -> Passes:
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
        return both_ways(self.streams, examples, self.passes) if self.config.train.both_ways else examples

    def training(self, examples: Sequence[Example], steps: int) -> Lessons:
        """Those of the examples that so many steps use, with the full model's logits. Within the streams.

        The same for a resumed run, so that it computes the same logits to the bit.
        """
        used = _used(examples, self.config.train, self.config.task.seed, steps)
        return Lessons(used, References(self.streams, used, self.passes, shuffled=self.shuffled), full=False)

    def validation(self) -> Lessons:
        """What gates are chosen by. Within the streams."""
        held_out = self.data.splits["validation"] or self.data.splits["train"]
        references = References(self.streams, held_out, self.passes, full=True, shuffled=self.shuffled)
        return Lessons(held_out, references, full=True)


def lay(prepared: Prepared, display: Display, frozen: FrozenModel | None = None) -> Ground:
    """Load the weights and leave out what the full model does not solve, if asked. Raises UserError.

    frozen: the model, where it is loaded already.
    """
    config, passes = prepared.config, prepared.passes
    sharding = read_settings(config.deepspeed)
    if saves_memory(config, sharding):
        give_freed_memory_back()
    if frozen is None:
        frozen = load_frozen(config.model, passes.ranks.device, sharding)
    data = keep_solved(config, frozen, prepared.data, passes, display)
    averaged = data.splits["train"] if prepared.reference is None else prepared.reference.examples
    ablation, moments = starting_ablation(config.ablation, frozen, averaged, passes)
    return Ground(prepared, data, Streams(frozen, ablation, config.train.checkpointing), moments)


def keep_solved(config: Config, frozen: FrozenModel, data: TaskData, passes: Passes, display: Display) -> TaskData:
    """With `task.keep: solved`, leave out the pairs that the full model gets wrong. Raises UserError if none is left."""
    if config.task.keep == "all":
        return data
    kept, before = {}, sum(map(len, data.splits.values()))
    with Streams(frozen, ZERO) as streams:
        for name, examples in data.splits.items():
            right = score(streams, examples, None, passes).accuracy[0] if examples else []
            kept[name] = [example for example, solved in zip(examples, right, strict=True) if solved]
    after = sum(map(len, kept.values()))
    display.say(f"task.keep solved: {before - after} of {before} pairs left out, the full model gets them wrong")
    if not kept["train"] or not kept["test"]:
        raise UserError("task.keep solved leaves no pair to train or test on; the model does not show this behaviour")
    return data._replace(splits=kept, unsolved=before - after)


def _used(examples: Sequence[Example], settings: TrainConfig, seed: int, steps: int) -> list[Example]:
    orders = (train_order(len(examples), settings.batch_size, step, seed) for step in range(steps))
    return [examples[index] for index in sorted({index for order in orders for index in order})]
