"""What the constants of an ablation are for each circuit: those in its file, or means over what its config names."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.data.dataset import AblationData, load_ablation_data
from bigcircuit.data.pair import Example
from bigcircuit.evaluation.open_circuits import LoadedCircuit
from bigcircuit.results.evaluation import Means


def saved_optimal(subject: LoadedCircuit, ablation: str) -> Ablation | None:
    """The learned constants in a circuit's file; None if it has none or these are not what is asked for."""
    own = subject.circuit.ablation
    return own if own is not None and own.kind.learned and own.name == ablation else None


def saved_means(subject: LoadedCircuit, ablation: str) -> Ablation | None:
    """The means in a circuit's file; None if it has none, or if its config names another data set by now."""
    own, known, settings = subject.circuit.ablation, subject.circuit.metadata, subject.config.ablation
    if own is None or own.name != ablation or not own.kind.is_measured:
        return None
    data = (settings.data or "").rsplit("/", 1)[-1]
    same = (
        known.get("ablation_data", data) == data and known.get("ablation_prompts", settings.prompts) == settings.prompts
    )
    return own if same else None


def means_info(subject: LoadedCircuit, ablation: str, averaged: "MeanData", task_sha256: str) -> Means | None:
    """What the means of an ablation are over for a circuit, or those where learned constants start; None where it has none."""
    if not KINDS[ablation].needs_moments:
        return None
    known = subject.circuit.metadata
    if saved_means(subject, ablation) or saved_optimal(subject, ablation):
        data = known.get("ablation_data", "")
        digest = known.get("ablation_data_sha256" if data else "task_sha256", "")
        return Means(data or _TRAINING, digest, known.get("ablation_prompts", ""), in_file=True)
    data, reference = subject.config.ablation.data, averaged.reference
    return Means(data or _TRAINING, reference.sha256 if reference else task_sha256, averaged.prompts, in_file=False)


_TRAINING = "training pairs"


class MeanData(NamedTuple):
    """What means are taken over."""

    reference: AblationData | None
    """The pairs of `ablation.data`; None for the training pairs of the task."""
    prompts: str

    def examples(self, train: Sequence[Example]) -> Sequence[Example]:
        """The pairs, given those of the task to train on."""
        return train if self.reference is None else self.reference.examples


def load_mean_data(
    subjects: Sequence[LoadedCircuit], ablations: Sequence[str], tokenizer: Any, hf_config: Any
) -> Mapping[str, MeanData]:
    """For each circuit, by name, what its config says of means; equal ones are the same object. Raises UserError.

    `ablation.data` is read where one of the ablations needs means that are not in the circuit's file.
    """
    known: dict[str, MeanData] = {}
    found = {}
    for subject in subjects:
        kinds = {name: KINDS[name] for name in ablations}
        needed = any(kind.learned or (kind.is_measured and not saved_means(subject, name)) for name, kind in kinds.items())
        settings, config = subject.config.ablation, subject.config
        reads = needed and settings.data is not None
        key = f"{settings.prompts} {config.task.model_dump_json() if reads else ''} {settings.data if reads else ''}"
        if key not in known:
            known[key] = MeanData(load_ablation_data(config, tokenizer, hf_config) if reads else None, settings.prompts)
        found[subject.name] = known[key]
    return found
