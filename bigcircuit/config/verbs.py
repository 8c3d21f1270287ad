"""The verbs of the command line as data: their parsers and their help are made of this table."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bigcircuit.config.own_code import read_modules
from bigcircuit.config.schema import Section
from bigcircuit.errors import UserError

Settings = Mapping[type[Section], str]
"""Settings that a verb takes: section -> prefix of its keys. The first section that has a key gets it."""


class Option(NamedTuple):
    """An option of a verb that is no setting."""

    name: str
    meaning: str
    value: str = ""
    """What to give, as usage lines have it; empty for a flag."""
    read: Callable[[str], Any] = str
    wanted: str = "number"
    """What the message for a value that cannot be read asks for."""

    @property
    def key(self) -> str:
        """The name in Python."""
        return self.name.replace("-", "_")


def _above_zero(text: str) -> float:
    """Read a number. Raises ValueError unless it is finite and above 0."""
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError(text)
    return number


def _count(text: str) -> int:
    """Read a number of processes. Raises ValueError unless it is from 1 to a million."""
    if not 0 < (number := int(text)) <= 1_000_000:
        raise ValueError(text)
    return number


def _device(text: str) -> str:
    """Read a kind of device. Raises ValueError unless it is known."""
    if text not in ("cuda", "cpu"):
        raise ValueError(text)
    return text


class Verb(NamedTuple):
    """A verb, but for what it does."""

    name: str
    summary: str
    """For the list of verbs."""
    about: str
    """What the verb does, for its own help."""
    usage: str
    """What comes after the name."""
    examples: Mapping[str, str]
    """What comes after the name in three commands -> what each is for."""
    settings: Sequence[str] = ()
    """The ten that matter most, or all where there are no more."""
    options: tuple[Option, ...] = ()
    names: bool = False
    """Whether words beside the options are taken, as files and folders."""
    defaults: Mapping[str, str] = {}
    """Settings that have another default with this verb -> that default."""
    reads: tuple[str, ...] = ()
    """Sections and settings of a run's config that the verb depends on, where these are not all; `prune` has them all."""
    instead: Mapping[str, str] = {}
    """Settings of a run's config that the verb does not read -> its own option that is probably meant."""

    def check_read(self, keys: Iterable[str]) -> None:
        """Raise UserError for a setting of a run's config, by dotted key, that would change nothing."""
        for key in keys:
            parts = [key[:end] for end, sign in enumerate(f"{key}.") if sign == "."]
            if self.reads and (key in self.instead or not set(parts) & set(self.reads)):
                own = self.instead.get(key, "")
                meant = f"its own setting is --{own}" if own else "leave it out"
                raise UserError(f"--{key}: {self.name} does not read it, so it would change nothing; {meant}")


_CONFIG = Option(
    "config", "Config file (YAML), or the folder of a run; settings on the command line override it.", "FILE"
)
_FRESH = Option("fresh", "Start over in a new folder beside the one that output names, instead of resuming.")
_ALLOW = Option(
    "allow",
    "Modules of your own whose functions the config may name as module:function, separated by commas. Without it a config runs "
    "no code.",
    "MODULE",
    read_modules,
    "module such as my_tasks",
)
_PRESET = Option(
    "preset", "Settings that come with the package, such as paper or default, under those of --config.", "NAME"
)
_READ_WITH_CIRCUITS = (
    "model", "task", "deepspeed", "ablation.data", "ablation.prompts", "train.batch_size", "train.micro_batch_size",
    "train.store", "train.store_memory", "train.checkpointing",
)  # fmt: skip
"""Settings of a run's config by which finished circuits are scored."""
_SETTINGS = "[--config FILE] [--SETTING VALUE ...]"

_TABLE = (
    Verb(
        name="prune",
        summary="find circuits and write a run folder",
        about="Find circuits: train masks over the frozen model, and write circuits, held-out scores and a page into the run "
        "folder. The same command resumes a run that was stopped.",
        usage=f"{_SETTINGS} [--fresh]",
        examples={
            "--config configs/quickstart.yaml": "a first circuit, of the small model in the package",
            "--model.path ./my-llama --target.total 5000 --output runs/a": "5000 neurons of a model of your own",
            "--config configs/quickstart.yaml --population.seeds 8": "eight circuits of different seeds, in one pass over a model",
        },
        settings=(
            "model.path task.name task.path ablation.kind gates.granularities target.total train.steps "
            "train.micro_batch_size population.seeds output"
        ).split(),
        options=(_CONFIG, _PRESET, _ALLOW, _FRESH),
    ),
    Verb(
        name="check",
        summary="validate config and pairs, print gates, memory and time needed",
        about="Validate config and pairs, and print sites, gates, the memory of a rank, which settings would fit, and with --time "
        "how long the run takes. Loads no weights.",
        usage=f"{_SETTINGS} [--ranks N]",
        examples={
            "--config configs/quickstart.yaml": "is this config right, and does it fit here?",
            "--config configs/quickstart.yaml --time": "and how long does it take here?",
            "--config mine.yaml --ranks 8 --device cuda --memory 80": "does it fit on eight GPUs of 80 GiB?",
        },
        settings=(
            "model.path model.dtype task.name task.path gates.granularities target.total train.micro_batch_size "
            "train.checkpointing population.seeds deepspeed"
        ).split(),
        options=(
            _CONFIG,
            _PRESET,
            _ALLOW,
            _FRESH._replace(meaning="Ignored, so that the words of a `prune` can be checked as they are."),
            Option("ranks", "Number of processes of the run; one by default.", "N", _count, "whole number above 0"),
            Option(
                "memory",
                "Free memory of each GPU, or of the CPU host that all ranks share; by default what is free on this machine.",
                "GIB",
                _above_zero,
                "number above 0",
            ),
            Option(
                "device",
                "Kind of the machine that is asked about, cuda (GPUs) or cpu; by default what this machine has.",
                "DEVICE",
                _device,
                "device, cuda or cpu",
            ),
            Option("time", "Measure for a few seconds how long an update and the whole run take on this machine."),
        ),
    ),
    Verb(
        name="evaluate",
        summary="is it right? faithfulness, completeness, minimality, baselines",
        about="Is a circuit right? Measure faithfulness, completeness and minimality, beside random circuits and baselines, and "
        "write evaluation.json.",
        usage="RUN_OR_CIRCUIT ... [--SETTING VALUE ...]",
        examples={
            "runs/quickstart --ablations all": "all circuits of a run, under every ablation",
            "found.safetensors --config configs/quickstart.yaml": "a circuit file; the config names its model and task",
            "runs/a --tasks configs/gpt2_ioi.yaml --control runs/random": "on another task as well, and beside a control",
        },
        settings=(
            "ablations draws methods levels tasks control at_once output model.path train.micro_batch_size"
        ).split(),
        options=(_CONFIG._replace(meaning="Config file (YAML) that names model and task of circuit files."), _ALLOW),
        names=True,
        defaults={"model.path": "the run's", "train.micro_batch_size": "the run's"},
        reads=_READ_WITH_CIRCUITS,
        instead={"ablation.kind": "ablations", "ablation.per_position": "ablations", "task.labels": "control"},
    ),
    Verb(
        name="compare",
        summary="what circuits share; their union, intersection, difference",
        about="Show what circuits share, write comparison.json, and save their union, intersection or difference as new circuits. "
        "Loads no weights.",
        usage="RUN_OR_CIRCUIT ... [--save NAMES] [--output FOLDER]",
        examples={
            "runs/a runs/b": "what two runs agree on",
            "runs/seeds --output runs/stability": "how stable a run's circuits are over its members",
            "runs/a runs/b --save union,intersection --output runs/ab": "new circuits of both",
        },
        settings="save output".split(),
        names=True,
    ),
    Verb(
        name="export",
        summary="a circuit as a smaller model that runs without bigcircuit",
        about="Write a circuit as a model: closed rows and columns are cut or zero. The export is opened again in a fresh process, "
        "compared with the masked model, and timed beside the base model.",
        usage="RUN_OR_CIRCUIT --format NAME [--SETTING VALUE ...]",
        examples={
            "runs/a --format uniform --output small": "a plain config, for transformers, vLLM and other servers",
            "runs/a --format compact --ablation mean --output small": "each layer as small as it can be",
            "found.safetensors --config my.yaml --format gguf --output g": "for llama.cpp",
        },
        settings=(
            "format output ablation mlp_neurons kv_heads heads_per_group verify speed any_model model.path"
        ).split(),
        options=(_CONFIG._replace(meaning="Config file (YAML) that names model and task of a circuit file."),),
        names=True,
        defaults={"model.path": "the run's"},
        reads=_READ_WITH_CIRCUITS,
        instead={"ablation.kind": "ablation", "ablation.per_position": "ablation", "task.labels": ""},
    ),
    Verb(
        name="recover",
        summary="fine-tune an exported model towards its base",
        about="Fine-tune an exported model with LoRA or by its own weights, so that it computes what its base does, on text or on "
        "the base's own samples. Scores before and after; writes a folder that loads as the export does. The same command resumes.",
        usage="EXPORT --recover.text FILE [--SETTING VALUE ...]",
        examples={
            "small --recover.text stories.jsonl": "distil the base into the export, on a file of text",
            "small --recover.generate 400 --recover.train rows": "on the base's own samples, training the layers' own weights",
            "small --recover.text my.txt --recover.loss next_token": "on the text itself",
        },
        settings=(
            "recover.text recover.generate recover.train recover.loss recover.steps recover.lr recover.tokens recover.merge "
            "model.path output"
        ).split(),
        names=True,
        defaults={"model.path": "the base of the export", "output": "EXPORT-recovered"},
        reads=("model", "deepspeed", "output"),
        instead={
            **{
                f"train.{name}": f"recover.{name}"
                for name in (
                    "steps",
                    "lr",
                    "lr_final",
                    "lr_warmup",
                    "batch_size",
                    "micro_batch_size",
                    "clip",
                    "seed",
                    "log_every",
                    "save_every",
                )
            },
            "task.path": "recover.text",
            "task.text.generate": "recover.generate",
            "task.text.column": "recover.field",
            "task.text.window": "recover.tokens",
            "task.split.test": "recover.held_out",
            "task.seed": "recover.seed",
        },  # fmt: skip
    ),
    Verb(
        name="convert",
        summary="circuits of other tools as circuit files, and the other way",
        about="Write a circuit that another tool has found as a circuit file, for evaluate, compare and report; with --to write a "
        "circuit file in the format of another tool. Loads no weights.",
        usage="FILE [--SETTING VALUE ...]",
        examples={
            "edges.json --model.path ./my-llama": "edges.json becomes edges.safetensors",
            "graph.json --config configs/gpt2_ioi.yaml": "the model is that of a config",
            "runs/a/circuit.safetensors --to eap-ig-pt --model.path gpt2": "for EAP-IG and MIB",
        },
        settings=[
            *("to", "output", "ablation", "config"),
            *(f"model.{name}" for name in "path revision dtype adapter device attention".split()),
        ],
        names=True,
    ),
    Verb(
        name="report",
        summary="the page of a run, a sweep or a circuit, or of several",
        about="Write the page of a run, a sweep or a circuit, or of several circuits beside each other. Loads no model.",
        usage="RUN_OR_CIRCUIT ... [--output FILE] [--figures FOLDER]",
        examples={
            "runs/quickstart": "write runs/quickstart/report.html again",
            "runs/a runs/b --output ab.html": "two runs on one page",
            "runs/quickstart --figures figures": "every figure as a file, for a paper",
        },
        options=(
            Option("output", "Page to write (HTML); by default report.html of the run, or comparison.html.", "FILE"),
            Option("figures", "Folder for every figure of the page as SVG, PNG and PDF.", "FOLDER"),
        ),
        names=True,
    ),
    Verb(
        name="sweep",
        summary="search settings with Ray Tune, many circuits at a time",
        about="Search settings with Ray Tune: many circuits train at once on each copy of the model. The same command resumes a "
        "sweep that was stopped.",
        usage=f"{_SETTINGS} [--dry-run]",
        examples={
            "--config configs/sweeps/penalties.yaml --dry-run": "which trials, how long, how much memory?",
            "--config configs/sweeps/penalties.yaml --output runs/s": "run them here",
            "--config configs/sweeps/penalties.yaml --address auto": "on a Ray cluster, from one of its machines",
        },
        settings=(
            "sweep.space sweep.search sweep.trials sweep.scheduler sweep.metric sweep.slots sweep.workers sweep.ranks "
            "train.steps output"
        ).split(),
        options=(
            _CONFIG._replace(
                meaning="Config file (YAML) with a section sweep, or a sweep's folder; settings on the command line override it."
            ),
            _ALLOW,
            Option("dry-run", "Print trials, time and memory, and run none."),
            _FRESH,
            Option("address", "Address of a Ray cluster, or auto; without one, Ray starts on this machine.", "ADDRESS"),
        ),
    ),
    Verb(
        name="sweep best",
        summary="the config of the best trial of a sweep",
        about="Print the config of the best trial within a bound, for `bigcircuit prune --config FILE`.",
        usage="FOLDER (--kl NATS | --neurons COUNT)",
        examples={
            "runs/s --kl 0.1": "the fewest neurons with a held-out KL of at most 0.1 nats",
            "runs/s --neurons 200": "the lowest held-out KL with at most 200 neurons",
            "runs/s --kl 0.1 > best.yaml": "as a file, to run it again",
        },
        options=(
            Option("kl", "The fewest neurons with a held-out KL of at most this.", "NATS", float, "number of nats"),
            Option("neurons", "The lowest held-out KL with at most so many neurons.", "COUNT", int, "count"),
        ),
        names=True,
    ),
    Verb(
        name="tasks",
        summary="list the task builders, or print pairs of one",
        about="List the task builders; with any setting, print the first pairs of the task that it describes.",
        usage=_SETTINGS,
        examples={
            "": "all task builders",
            "--task.name greater_than": "pairs of one, for the small model in the package",
            "--task.name pairs --task.path my.jsonl --model.path gpt2": "pairs of a file",
        },
        settings=(
            "task.name task.path task.format task.columns task.size task.seed task.special_tokens task.max_tokens "
            "task.bad_pairs model.path"
        ).split(),
        options=(_CONFIG, _PRESET, _ALLOW),
    ),
    Verb(
        name="env",
        summary="versions, devices and cores",
        about="Print versions of libraries, devices, cores and the variables that launchers set.",
        usage="",
        examples={
            "": "of this machine",
            "> environment.txt": "as a file, for a bug report",
            "| grep accelerators": "which GPUs does torch see?",
        },
    ),
)
VERBS = {verb.name: verb for verb in _TABLE}
"""Name -> verb, in the order of the help."""
