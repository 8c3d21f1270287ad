"""Constants of a circuit under an ablation, and where they come from: the circuit's file, or means over a data set."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.data.dataset import AblationData, load_ablation_data
from bigcircuit.data.pair import Example
from bigcircuit.evaluation.open_circuits import LoadedCircuit
from bigcircuit.results.evaluation import Means

_TRAINING = "training pairs"


class MeanData(NamedTuple):
    """Prompts over which means are taken."""

    reference: AblationData | None
    """The pairs of `ablation.data`; None for the training pairs of the task."""
    prompts: str
    """`corrupted`, `clean` or `both`."""

    def examples(self, train: Sequence[Example]) -> Sequence[Example]:
        """Select the pairs. train: the training pairs of the task."""
        return train if self.reference is None else self.reference.examples


class CircuitConstants(NamedTuple):
    """Constants of one circuit under one ablation."""

    saved: Ablation | None
    """The ablation with the constants in the circuit's file; None where the file has none or its config now names other data."""
    data: MeanData | None
    """Prompts of the means that are measured, or from which learning starts; None where nothing is measured."""
    source: Means | None
    """Origin of the constants, for evaluation.json; None for kinds without constants."""


class MeanDataReader:
    """Reads the data set that a circuit's config names for means. Circuits with the same data set get the same object."""

    def __init__(self, tokenizer: Any | None, hf_config: Any) -> None:
        self._tokenizer, self._hf_config = tokenizer, hf_config
        self._known: dict[tuple[str, ...], MeanData] = {}

    def __call__(self, loaded: LoadedCircuit) -> MeanData:
        """Read `ablation.data` unless it was read before. Raises UserError."""
        config, settings = loaded.config, loaded.config.ablation
        key: tuple[str, ...] = (settings.prompts,)
        if settings.data is not None:
            key += (config.task.model_dump_json(), settings.data)
        if key not in self._known:
            reference = load_ablation_data(config, self._tokenizer, self._hf_config)
            self._known[key] = MeanData(reference, settings.prompts)
        return self._known[key]


def resolve_constants(
    loaded: LoadedCircuit, ablation: str, read: Callable[[LoadedCircuit], MeanData], task_sha256: str
) -> CircuitConstants:
    """Choose the constants of a circuit under an ablation: the only place that chooses them.

    read: reads the data set of the circuit's config; called where means are measured. task_sha256: hash of the pairs of its task.
    Raises UserError.
    """
    kind = KINDS[ablation]
    if not kind.needs_moments:
        return CircuitConstants(None, None, None)
    saved = _saved(loaded, ablation)
    # Learned constants are fitted, from means on, for the circuits that this one is compared with.
    data = read(loaded) if kind.learned or saved is None else None
    if saved is None and data is not None:
        digest = data.reference.sha256 if data.reference else task_sha256
        name = loaded.config.ablation.data or _TRAINING
        return CircuitConstants(saved, data, Means(name, digest, data.prompts, in_file=False))
    known = loaded.circuit.metadata
    name = known.get("ablation_data", "")
    digest = known.get("ablation_data_sha256" if name else "task_sha256", "")
    source = Means(name or _TRAINING, digest, known.get("ablation_prompts", ""), in_file=True)
    return CircuitConstants(saved, data, source)


def _saved(loaded: LoadedCircuit, ablation: str) -> Ablation | None:
    """Select the ablation in a circuit's file; None for another ablation, or for means over other data than its config names."""
    saved, known, settings = loaded.circuit.ablation, loaded.circuit.metadata, loaded.config.ablation
    if saved is None or saved.name != ablation:
        return None
    if saved.kind.learned:
        return saved
    data = (settings.data or "").rsplit("/", 1)[-1]
    named_now = known.get("ablation_data", data), known.get("ablation_prompts", settings.prompts)
    return saved if named_now == (data, settings.prompts) else None
