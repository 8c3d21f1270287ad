"""Set up a run: load the model, and make the pairs, the ablation and the reference logits that all members share."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bigcircuit.ablation.ablation import Moments
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.attribution.mask_gradients import integrated_gradients, rank_scores
from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import TaskData
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.data.training_order import TrainingOrder
from bigcircuit.forward.activation_means import starting_ablation
from bigcircuit.forward.corrupted_store import CorruptedStore
from bigcircuit.forward.kept_logits import KeptLogits
from bigcircuit.forward.model_check import check_loaded_model
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.store_memory import StoreMemory
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.members import trained_granularities
from bigcircuit.gates.population import Population
from bigcircuit.io.provenance import versions
from bigcircuit.model.granularity import SITE_WIDTH
from bigcircuit.model.sites import FrozenModel
from bigcircuit.runtime.host_memory import return_freed_memory, saves_memory
from bigcircuit.train.pair_filters import complete_data, swap_pairs
from bigcircuit.train.resolve import ResolvedRun
from bigcircuit.train.targets import shared_for


class RunContext(NamedTuple):
    """What all members of a run share: the masked model and the pairs that are left."""

    run: ResolvedRun
    data: TaskData
    """The pairs of `run` without those that `task.keep` leaves out."""
    streams: Streams
    """To be entered around all passes."""
    moments: Moments | None
    """Where learned constants start; None for ablations that measure nothing."""

    @property
    def config(self) -> Config:
        """Settings of the run; those of a member are in `Member.config`."""
        return self.run.config

    @property
    def micro_batches(self) -> MicroBatches:
        """How examples are cut into passes and dealt to ranks."""
        return self.run.micro_batches

    @property
    def nodes(self) -> dict[str, int]:
        """Nodes of the model by granularity, and as `total` site neurons."""
        return self.run.model.nodes

    def population(self, configs: Sequence[Config]) -> Population:
        """New members with these settings."""
        frozen = self.streams.frozen
        shared = shared_for(configs, frozen)
        population = Population.new(configs, frozen.shapes, self.micro_batches.ranks.device, shared)
        if KINDS[self.config.ablation.name].learned and self.moments is not None:
            population.start_constants(self.moments)
        return population

    def warm_start(self, population: Population) -> None:
        """Shift the gates of new members by attribution, where the settings ask for it. Within the streams."""
        gates = self.config.gates
        if gates.warm_start == "integrated_gradients":
            examples = self.data.splits["train"]
            scores = integrated_gradients(self.streams, examples, self.micro_batches, points=gates.warm_start_points)
            population.shift_neurons(rank_scores(scores))

    @property
    def label_seed(self) -> int | None:
        """Seed by which labels are shuffled for the control `task.labels random`; None where each pair keeps its own."""
        return self.config.task.seed if self.config.task.labels == "random" else None

    def training_order(self) -> TrainingOrder:
        """Order in which updates see the training examples, with swapped pairs where these are asked for. Within the streams."""
        examples = self.data.splits["train"]
        if self.config.train.both_ways:
            examples = swap_pairs(self.streams, examples, self.micro_batches)
        return self.run.training_order(examples)

    def training_targets(
        self,
        order: TrainingOrder,
        steps: int,
        kept: KeptLogits | None = None,
        sites: Collection[str] = SITE_WIDTH,
        scratch: Path | None = None,
    ) -> Targets:
        """The examples of so many updates, with the full model's logits and what the corrupted run leaves. Within the streams.

        A resumed run computes or reads the same logits to the bit, because it uses the same examples. sites: those that masks
        may close. scratch: folder for activations that are too large for `train.store_memory`; None keeps them in memory.
        """
        found = self._targets(order.used(steps), False, kept)
        if not self.run.stores_corrupted:
            return found
        memory = None if scratch is None else StoreMemory(scratch, self.config.train.store_memory)
        return found._replace(store=CorruptedStore(self.streams, found.examples, self.micro_batches, sites, memory))

    def validation_targets(self, kept: KeptLogits | None = None) -> Targets:
        """The examples that the best gates are chosen by, with the full model's logits. Within the streams."""
        return self._targets(self.data.splits["validation"] or self.data.splits["train"], True, kept)

    def _targets(self, examples: Sequence[Example], full: bool, kept: KeptLogits | None) -> Targets:
        micro_batches, seed = self.micro_batches, self.label_seed
        references = ReferenceLogits(self.streams, examples, micro_batches, full=full, shuffled=seed, kept=kept)
        return Targets(examples, references, full)

    def kept_logits(self, folder: Path) -> KeptLogits:
        """Where this run keeps reference logits: bound to its model, and to what else changes their bits."""
        model = self.config.model.model_dump_json(exclude={"weights"})
        threads = str(torch.get_num_threads())
        base = {**self.run.fingerprint, "model": model, "threads": threads, "versions": json.dumps(versions())}
        return KeptLogits(folder, base)


def set_up(run: ResolvedRun, frozen: FrozenModel | None = None) -> RunContext:
    """Load the weights, leave out pairs that the full model does not solve, if asked, and measure the ablation.

    frozen: the model, where it is loaded already. Raises UserError.
    """
    config, micro_batches = run.config, run.micro_batches
    if saves_memory(config, run.model.deepspeed is not None):
        return_freed_memory()
    if frozen is None:
        with micro_batches.progress.phase("loading weights"):
            frozen = run.model.load(micro_batches.ranks.device)
    with micro_batches.progress.phase("checking the model"):
        check_loaded_model(frozen, brief=run.model.is_read_from_disk)
    data = complete_data(config, frozen, run.data, micro_batches)
    measured_over = data.splits["train"] if run.ablation_data is None else run.ablation_data.examples
    names = trained_granularities(run.members[0])  # the same for all members
    ablation, moments = starting_ablation(config.ablation, frozen, measured_over, micro_batches, names)
    return RunContext(run, data, Streams(frozen, ablation, config.train.checkpointing), moments)
