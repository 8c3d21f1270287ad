"""Resolve a run: everything that is known before weights are loaded, read once and checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.config.load import members, override
from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import AblationData, TaskData, load_ablation_data, load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.data.training_order import TrainingOrder
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.model.resolve import ResolvedModel, resolve_model
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.train.fingerprint import run_fingerprint
from bigcircuit.train.layer_sizes import check_layer_sizes
from bigcircuit.train.own_loss import try_loss
from bigcircuit.train.targets import check_expert_neurons, count_targets


@dataclass(frozen=True)
class ResolvedRun:
    """A run whose settings, model, tokenizer and pairs are read and fit each other."""

    config: Config
    members: tuple[Config, ...]
    """The config of every member of the population, its parametrisation chosen and its targets counted in nodes."""
    model: ResolvedModel
    data: TaskData
    ablation_data: AblationData | None
    """The pairs that moments of the ablation are measured over, where these are not the training pairs."""
    micro_batches: MicroBatches

    @cached_property
    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of model files and pairs by name, see `run_fingerprint`. Reads all weights at the first use."""
        return run_fingerprint(self.config, self.data, self.ablation_data, self.micro_batches.progress)

    @property
    def over_suffix(self) -> bool:
        """Whether updates can run the tokens behind the shared prefix alone."""
        return self.model.skeleton.architecture.suffix and KINDS[self.config.ablation.name].needs_corrupted

    @property
    def stores_corrupted(self) -> bool:
        """Whether updates use stored activations of the corrupted prompts."""
        return self.config.train.store and self.over_suffix

    def training_order(self, examples: Sequence[Example]) -> TrainingOrder:
        """Order in which updates see training examples."""
        return TrainingOrder(
            examples, self.config.train.batch_size, self.config.task.seed, over_suffix=self.over_suffix
        )

    @property
    def both_streams(self) -> str:
        """Sentence on why updates run both prompts whole; empty where they run the suffix alone or no corrupted prompts."""
        if self.stores_corrupted or not KINDS[self.config.ablation.name].needs_corrupted:
            return ""
        kind = self.model.skeleton.architecture.kind
        why = f"a suffix can be run alone where layers keep keys and values and nothing else, and this model is: {kind}"
        return f"updates run both prompts whole: {why if self.config.train.store else 'train.store is false'}"

    def changed(self, overrides: Mapping[str, Any], source: str) -> "ResolvedRun":
        """The same run with other settings, but for those that name files: model, pairs and DeepSpeed config stay as read."""
        config = override(self.config, overrides, source)
        counted = count_targets(members(config), self.model.nodes)
        check_layer_sizes(counted, self.model.skeleton)
        return replace(self, config=config, members=counted, model=self.model.changed(config.model))


def resolve(config: Config, ranks: Ranks, progress: ProgressDisplay | None = None) -> ResolvedRun:
    """Read and check all but the weights. progress: where all passes of the run are shown. Raises UserError."""
    configs = members(config)
    with (progress or ProgressDisplay(enabled=False)).phase("reading model config and pairs"):
        model = resolve_model(config.model, config.deepspeed)
        data = load_task(config.task, model.tokenizer, model.hf_config)
        ablation_data = load_ablation_data(config, model.tokenizer, model.hf_config)
    _check_saved(config, model)
    _check_weight_copy(config, model)
    check_expert_neurons(configs, model.skeleton)
    counted = count_targets(configs, model.nodes)
    check_layer_sizes(counted, model.skeleton)
    if config.train.loss:
        try_loss(config.train.loss, data.splits["train"], model.hf_config.vocab_size)
    return ResolvedRun(
        config=config,
        members=counted,
        model=model,
        data=data,
        ablation_data=ablation_data,
        micro_batches=MicroBatches.of(config, ranks, progress),
    )


def _check_saved(config: Config, model: ResolvedModel) -> None:
    """Raises UserError where few bits would change nothing, or where weights come and go within a graph."""
    others = {
        "train.checkpointing": bool(config.train.checkpointing),
        "model.weights stream": config.model.weights == "stream",
        "ZeRO-3": model.deepspeed is not None,
    }
    if config.train.saved != "exact" and (found := [name for name, is_set in others.items() if is_set]):
        raise UserError(
            f"train.saved is {config.train.saved}, which does not go with {found[0]}; set it to exact, or leave {found[0]} out"
        )


def _check_weight_copy(config: Config, model: ResolvedModel) -> None:
    """Raises UserError where weights that are to learn along are quantised, or of a kind that `recover` does not train."""
    architecture = model.skeleton.architecture
    if config.train.weight_lr and not architecture.trains_weights:
        raise UserError(
            f"{config.model.path}: is a {architecture.kind}, whose weights neither train.weight_lr nor recover trains; leave "
            "train.weight_lr out"
        )
    if config.train.weight_lr and model.quantization.bits is not None:
        raise UserError(
            f"{config.model.path}: has quantised weights, and train.weight_lr trains a copy of them; set --model.quantization "
            "dequantise, or leave train.weight_lr out"
        )
