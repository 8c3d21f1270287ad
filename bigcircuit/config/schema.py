"""The configuration: frozen pydantic models, one dotted grammar for YAML, the command line, populations and sweeps.

Nothing heavy is imported here, so that a mistake in a config is reported before torch is even loaded.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bigcircuit.ablation.kinds import DEFAULT, KINDS, config_kinds, full_name, with_moments
from bigcircuit.config.chat import ChatConfig
from bigcircuit.config.choices import OneOf, described
from bigcircuit.config.section import Section
from bigcircuit.config.sizes import PenaltyConfig, TargetConfig, Weight
from bigcircuit.config.text import TextConfig, text_settings_problem
from bigcircuit.config.tracking import TrackingConfig
from bigcircuit.gates.parametrisation import PARAMETRISATIONS, automatic
from bigcircuit.model.granularity import GATED, GRANULARITIES

GranularityName = Annotated[str, OneOf(GRANULARITIES)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class ModelConfig(Section):
    """The frozen base model."""

    path: str = "embedded"
    """Folder or hub id of a causal language model; `embedded` is the small model that comes with the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen weights and activations; gates are always float32."""
    weights: Literal["resident", "stream"] = "resident"
    """`resident`: all frozen weights in the memory of the device, on CPU mapped from files; `stream`: layers flow through it."""
    adapter: str | None = None
    """Folder or hub id of a PEFT adapter to put on the model."""
    quantization: Literal["none", "int8", "nf4", "dequantise"] = "none"
    """`none`: weights as the checkpoint has them, quantised or not; `int8`, `nf4`: plain weights are quantised when they are
    loaded, by torchao or bitsandbytes; `dequantise`: quantised weights are made plain."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto`: on GPUs where there are any, else on CPU; `cuda`: on GPUs only. `evaluate` does not take it from the run."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention implementation of transformers. `auto`: sdpa where the model has it, else eager; circuit files say which it was."""
    architecture: Literal["listed", "guess"] = "listed"
    """`guess`: open a model type that is not listed too, its layers found by their names; what was found is checked on loading."""


class SplitConfig(Section):
    """How pairs are divided; no prompt is in two splits. A `split` column in the file wins."""

    train: Fraction = 0.4
    """Fraction of the pairs that gates are trained on."""
    validation: Fraction = 0.1
    """Fraction for choosing the best step during the run."""
    test: Fraction = 0.5
    """Fraction held out for the scores that are reported."""
    by: Literal["prompt", "template"] = "prompt"
    """`template` also holds whole templates out, as a split of its own, off_distribution, whose scores `evaluate` reports
    apart. Task builders set templates; a pair file has them in a column `template`."""
    off_distribution: Fraction = 0.25
    """Share of the templates that is held out, one at least, when they are; the other fractions are of the rest."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> "SplitConfig":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"task.split: train {self.train} + validation {self.validation} + test {self.test} is "
                f"{total:g}; make them add up to 1"
            )
        if not self.train or not self.test:
            raise ValueError("task.split: train and test must both be above 0")
        return self


class TaskConfig(Section):
    """The behaviour: clean/corrupted prompt pairs with right and wrong answers."""

    name: str = "ioi"
    """A task builder (`bigcircuit tasks` lists them), `pairs` to read a file, or `text` to prune on general text."""
    path: str | None = None
    """Pair file (JSONL, CSV, Parquet, JSON) or data set, when name is `pairs`; the list of requests or questions that a task
    such as `refusal` is built from."""
    format: str | None = None
    """Format of the pair file; found out from its columns when absent."""
    columns: dict[str, str] = {}
    """Canonical column -> column of the file, for files that name them differently."""
    split: SplitConfig = SplitConfig()
    size: Annotated[int, Field(ge=1, le=250_000)] = 400
    """Pairs a task builder makes, before splitting."""
    seed: Count = 0
    """Seed of the builder, of the split and of the order of the data; members of a population share it."""
    max_tokens: Positive = 256
    """Longest prompt with answer, in tokens; a longer one is an error."""
    special_tokens: bool = True
    """Let the tokenizer add its special tokens (BOS) to the prompt."""
    leading_space: Literal["keep", "add"] = "keep"
    """`add` puts a space before answers of a pair file that begin with a letter or digit, where the prompt ends with a word."""
    answer_tokens: Positive | None = None
    """Score only so many first tokens of an answer, such as the beginning of a whole reply; all of them when absent."""
    chat: ChatConfig = ChatConfig()
    text: TextConfig = TextConfig()
    bad_pairs: Literal["stop", "drop"] = "stop"
    """A pair that cannot be scored (unequal lengths, duplicates, ...) ends the run at once, or is left out and counted."""
    labels: Literal["own", "random"] = "own"
    """`random` is a control: in training each pair gets the full model's predictions for another pair, so what is found is what
    masks can fit that is not there. The scores at the end are those with its own."""
    keep: Literal["all", "solved"] = "all"
    """`solved` leaves out, and counts, the pairs the full model itself gets wrong."""
    padding: Literal["right", "left"] = "right"
    """Side on which shorter prompts of a batch are padded; no number depends on it."""

    @model_validator(mode="after")
    def _pairs_need_a_path(self) -> "TaskConfig":
        if self.name == "pairs" and not self.path:
            raise ValueError("task.name is pairs but task.path is not set; name the pair file")
        return self


AblationName = Annotated[str, OneOf(KINDS)]
"""Ablations by their full names, as they stand beside scores."""


class AblationConfig(Section):
    """What a closed node outputs instead."""

    kind: Annotated[str, OneOf(config_kinds())] = Field(
        default=DEFAULT, description=described({name: KINDS[name].description for name in config_kinds()})
    )
    per_position: bool = False
    """One mean for each position, counted from the start of the prompt; beyond the longest prompt that over all of them."""
    data: str | None = None
    """Pair file or task builder over all of whose prompts the mean is taken; the training split when absent."""
    prompts: Literal["corrupted", "clean", "both"] = "corrupted"
    """Which prompts of the pairs: the corrupted ones are the usual reference, on which the behaviour is not asked for."""
    lr: Annotated[float, Field(gt=0)] = 0.02
    """Highest learning rate of the optimal constants, in standard deviations of the neuron per update; follows train.lr."""
    finish_steps: Count = 200
    """Updates by which optimal constants are fitted once more, at the end, to the finished masks; 0 for none."""

    @property
    def name(self) -> str:
        """The full name, as it stands beside scores; a key of `ablation.kinds.KINDS`."""
        return full_name(self.kind, self.per_position)

    @model_validator(mode="after")
    def _fits_the_kind(self) -> "AblationConfig":
        if self.name not in KINDS:
            variants = " or ".join(name for name in config_kinds() if full_name(name, True) in KINDS)
            raise ValueError(
                f"ablation.per_position is true but ablation.kind is {self.kind}; set ablation.kind to {variants} or leave it out"
            )
        for key, value in (("data", self.data), ("prompts", self.prompts if self.prompts != "corrupted" else None)):
            if value and not KINDS[self.name].needs_moments:
                raise ValueError(
                    f"ablation.{key} is {value} but ablation.kind is {self.kind}, which takes no mean; set ablation.kind "
                    f"to {' or '.join(with_moments())} or leave ablation.{key} out"
                )
        return self


class GatesConfig(Section):
    """The gates: where they are and how they start."""

    granularities: tuple[GranularityName, ...] = GATED
    """The kinds of nodes that get gates; those that the model has none of are left out."""
    init: float = 1.0
    """Mean of the first log_alpha."""
    init_spread: Weight = 0.5
    """Half-width of the uniform noise on the first log_alpha."""
    clamp: Annotated[float, Field(gt=0)] = 5.0
    """log_alpha stays within plus and minus this, so that no gate becomes unrecoverable."""
    parametrisation: Annotated[str, OneOf(["auto", *PARAMETRISATIONS])] = Field(
        default="auto",
        description=described(
            {name: one.description for name, one in PARAMETRISATIONS.items()},
            before="Gate values in training. ",
            after=f". `auto`: {automatic(True)} where every member has a target and no penalty, else {automatic(False)}.",
        ),
    )
    temperature: Annotated[float, Field(gt=0)] = 0.6
    """Softness of top-k gates at the start, in units of log_alpha; it falls geometrically."""
    temperature_final: Annotated[float, Field(gt=0)] = 0.1
    """Softness of top-k gates at the end."""
    look_ahead: bool = True
    """Top-k, while sizes fall: every update is at a size of its own, log-uniform from the one allowed now down to the asked one,
    so that this has a say before most nodes are closed. false: always at the allowed one."""
    sampled_sizes: bool = False
    """Top-k: train every example at a size of its own, log-uniform from a fiftieth of the nodes to all, so that the strengths
    order the nodes at every size; target.* then says at which size the circuit is validated and written."""
    warm_start: Literal["none", "integrated_gradients"] = "none"
    """Shift the first log_alpha of each neuron by the rank of its attribution."""
    warm_start_spread: Weight = 1.0
    """Half-width of that shift: the lowest-ranked neuron starts this much lower, the highest this much higher."""
    warm_start_points: Positive = 10
    """Points on the path of the integrated gradients."""

    @model_validator(mode="after")
    def _distinct(self) -> "GatesConfig":
        if not self.granularities:
            raise ValueError("gates.granularities is empty; name at least one")
        if len(set(self.granularities)) < len(self.granularities):
            raise ValueError(f"gates.granularities names one twice: {', '.join(self.granularities)}")
        if abs(self.init) + self.init_spread > self.clamp:
            raise ValueError(
                f"gates.init {self.init:g} with gates.init_spread {self.init_spread:g} starts outside "
                f"gates.clamp {self.clamp:g}; lower one or raise the clamp"
            )
        return self


class TrainConfig(Section):
    """The optimisation of the gates."""

    steps: Count = 600
    """Updates; 0 cuts the ranking of `gates.warm_start` at the target (configs/presets/rank.yaml)."""
    batch_size: Positive = 16
    """Pairs per update, over all ranks."""
    micro_batch_size: Positive = 8
    """Pairs that go through the model at once on one rank. Fewer need less memory and waste less padding. Up to
    batch_size / micro_batch_size ranks the result is the same to the last bit; more ranks get smaller pieces."""
    both_ways: bool = True
    """Train on pairs turned round too, where the full model shows the behaviour on the corrupted prompt as well (it prefers
    the answers that are wrong after the clean one). Twice the data; held-out scores are for pairs as given."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Highest learning rate of Adam, per update."""
    lr_final: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate at the end as a share of the highest; the decay is a cosine."""
    lr_warmup: Fraction = 0.02
    """Share of the steps over which the learning rate rises from 0."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a member's gradient."""
    penalty_start: Fraction = 0.0
    """Share of the steps before any penalty acts."""
    penalty_ramp: Fraction = 0.7
    """Share of the steps over which penalties rise from 0, or sizes fall to their targets."""
    coarse_start: Fraction = 0.0
    """Share of the steps before block, attention, mlp, kv_group and head gates are penalised: gates of many neurons
    need a later start than fine ones."""
    kl: Weight = 1.0
    """Weight of KL(reference || circuit) at the answer positions, in nats."""
    hinge: Weight = 0.0
    """Weight of max(0, margin - logit difference)."""
    margin: float = 1.0
    """Logit difference that the hinge asks for."""
    loss: str | None = None
    """Function of your own, `module:function`, added to the loss: of (logits of a circuit [S, V], batch, logits of the full
    model [S, V]), one number a pair, [B]. Set train.kl to 0 to train on it alone."""
    dual_lr: Annotated[float, Field(gt=0)] = 0.005
    """Step of the dual variables of target mode, in nats of loss per whole open fraction."""
    dual_stiffness: Weight = 30.0
    """Weight of the squared relative excess over the allowed size in target mode, in nats."""
    weight_lr: Weight = 0.0
    """Highest learning rate of a copy of the layers' weights that learns along, under `task.name text`: gates then choose what is
    best after `recover` and not as it is (docs/text.md). The copy is given up at the end. 0: no copy."""
    seed: Count = 0
    """Seed of a member's gates and noise."""
    checkpointing: bool | Literal["cpu"] = False
    """Keep only layer inputs and run each layer again in the backward pass: less memory, about a third more time. `cpu`
    keeps them in the memory of the host."""
    saved: Literal["exact", "8bit", "4bit"] = "exact"
    """Bits of a value in which activations are kept for the backward pass; with few, less memory and gradients with an error
    (docs/large-models.md)."""
    store: bool = True
    """Under interchange ablation, compute the corrupted run of every training pair once, keep its activations, and run only the
    tokens behind the prefix that both prompts share. Off: run the corrupted prompts in every update."""
    store_memory: Weight = 4.0
    """GiB of a host for what `store` keeps, all ranks counted; more is in a file of the run folder, mapped once a host.
    `evaluate` keeps passes of the full model up to as much, and computes again what is more."""
    log_every: Positive = 20
    """Steps between two lines of metrics.jsonl."""
    validate_every: Positive = 100
    """Steps between two validations; the best validated gates are kept."""
    save_every: Positive = 100
    """Steps between two checkpoints."""
    keep_checkpoints: Positive = 2
    """Checkpoints that stay on disk."""


class PopulationConfig(Section):
    """Members that are trained together in one pass over one model."""

    seeds: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Train this many members that differ in train.seed alone: seed, seed + 1, ..."""
    members: tuple[dict[str, Any], ...] = ()
    """One mapping of dotted keys to values a member, such as {penalty.head: 0.2, train.seed: 3}."""

    @model_validator(mode="after")
    def _one_way(self) -> "PopulationConfig":
        if self.members and self.seeds > 1:
            raise ValueError(
                f"population.seeds is {self.seeds} and population.members has {len(self.members)}; use one"
            )
        return self


class Config(Section):
    """Everything a run depends on."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    ablation: AblationConfig = AblationConfig()
    gates: GatesConfig = GatesConfig()
    penalty: PenaltyConfig = PenaltyConfig()
    target: TargetConfig = TargetConfig()
    train: TrainConfig = TrainConfig()
    population: PopulationConfig = PopulationConfig()
    tracking: TrackingConfig = TrackingConfig()
    deepspeed: str | None = None
    """DeepSpeed config (JSON): at ZeRO stage 3 each rank holds a piece of the frozen weights, else all of them."""
    output: str = "runs/prune"
    """Folder to write."""

    @model_validator(mode="after")
    def _granularities_exist(self) -> "Config":
        enabled = self.gates.granularities
        used = {f"target.{name}": name for name in self.target.sizes() if name != "total"}
        used |= {f"penalty.{name}": name for name, weight in self.penalty if weight}
        for key, name in used.items():
            if name not in enabled:
                raise ValueError(f"{key} is set but gates.granularities is [{', '.join(enabled)}]; add {name} to it")
        return self

    @model_validator(mode="after")
    def _fits_text(self) -> "Config":
        if problem := text_settings_problem(self):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _random_labels_have_no_answers(self) -> "Config":
        hinges = [self.train.hinge, *(overrides.get("train.hinge", 0) for overrides in self.population.members)]
        if self.task.labels == "random" and any(hinges):
            raise ValueError(
                "task.labels is random but train.hinge asks for the pairs' own answers; set train.hinge to 0"
            )
        return self


MEMBER_KEYS = (
    "penalty.",
    "target.",
    "ablation.lr",
    "train.seed",
    "train.steps",
    "train.lr",
    "train.lr_final",
    "train.lr_warmup",
    "train.clip",
    "train.penalty_start",
    "train.penalty_ramp",
    "train.coarse_start",
    "train.kl",
    "train.hinge",
    "train.margin",
    "train.dual_lr",
    "train.dual_stiffness",
    "gates.init",
    "gates.init_spread",
    "gates.clamp",
    "gates.temperature",
    "gates.temperature_final",
    "gates.look_ahead",
    "gates.warm_start_spread",
)
"""What members of one population may differ in; the rest belongs to the shared pass."""
