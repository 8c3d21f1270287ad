"""Measure moments of the full model's activations over a data set, for ablations that need them.

Shapes: L layers, R rows of a batch, T positions, n values of a site in the widest layer, w in one layer, N = R * T
tokens of a pass, k experts of a token, E experts of a layer.
"""

from collections.abc import Collection, Container, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bigcircuit.ablation.ablation import ZERO, Ablation, Moments
from bigcircuit.ablation.kinds import KINDS, full_name
from bigcircuit.config.schema import AblationConfig
from bigcircuit.data.collate import Batch
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.experts import Added
from bigcircuit.forward.finite import model_error
from bigcircuit.forward.pass_state import ExpertWatcher
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import EXPERT, EXPERT_NEURON, measured_sites, widest_values
from bigcircuit.model.sites import FrozenModel

_PROMPTS = {"corrupted": ("corrupted",), "clean": ("clean",), "both": ("clean", "corrupted")}


def moments(
    frozen: FrozenModel,
    examples: Sequence[Example],
    micro_batches: MicroBatches,
    *,
    per_position: bool,
    prompts: str,
    names: Container[str] = (),
) -> Moments:
    """Run the full model over the examples and take moments; each token that is not padding weighs the same.

    Sums are in float64. An expert, or a neuron of one, has the value 0 at tokens that the router did not send to it.

    The tokens are those a circuit is trained on: the prompt and all but the last of its first answer. The ranks divide the
    work and all get the result. prompts: "corrupted", "clean" or "both". Without per_position T is 1. names: granularities of
    the circuits that the moments are for; see `measured_sites`.
    """
    longest = max(len(example.clean) + len(example.answers[0]) - 1 for example in examples)
    sums = _Sums(frozen, longest if per_position else 1, measured_sites(frozen.shapes, names))
    experts = ExpertWatcher({EXPERT, EXPERT_NEURON} & sums.first.keys(), sums.add_experts)
    with Streams(frozen, ZERO) as streams:
        for micro_batch in micro_batches.iterate(examples, full=False, phase="activation means"):
            micro_batches.ranks.stop_if_requested()
            sums.begin(micro_batch.batch, micro_batch.is_counted)
            for name in _PROMPTS[prompts]:
                sums.count()
                streams.watch(micro_batch.batch, getattr(micro_batch.batch, name), sums, experts)
    micro_batches.ranks.all_reduce([*sums.first.values(), *sums.second.values(), sums.tokens])
    return sums.moments()


class _Sums:
    """Running sums of activations: a Watcher of Streams that keeps nothing but the sums."""

    def __init__(self, frozen: FrozenModel, positions: int, sites: Collection[str]) -> None:
        self.tokens = torch.zeros(positions, dtype=torch.float64, device=frozen.device)
        """Number of tokens, [T or 1]."""
        shapes = frozen.shapes
        self._experts = [shape.experts for shape in shapes]
        sizes = {site: (len(shapes), positions, widest_values(shapes, site)) for site in sites}
        self.first = {site: self.tokens.new_zeros(size) for site, size in sizes.items()}
        self.second = {site: self.tokens.new_zeros(size[0], size[2]) for site, size in sizes.items()}

    def begin(self, batch: Batch, counts: bool) -> None:
        """Lay out the next batch: where the tokens of each row begin, and how many there are."""
        mask = torch.ones_like(batch.clean) if batch.attention_mask is None else batch.attention_mask
        place = torch.arange(mask.shape[1], device=mask.device)
        self._columns = (place + mask.argmax(1, keepdim=True)).clamp(max=mask.shape[1] - 1)
        self._valid = (place < mask.sum(1, keepdim=True)) & counts

    def count(self) -> None:
        """Count the tokens of one prompt of each row."""
        per_position = self._valid.sum(0)
        if len(self.tokens) == 1:
            self.tokens += per_position.sum()
        else:
            self.tokens[: len(per_position)] += per_position

    def __call__(self, index: int, site: str, value: Tensor) -> None:
        """Add activations [R, T, w]. The order of the sum is fixed, so that a second run gives the same bits."""
        if site not in self.first:
            return
        own = value.gather(1, self._columns.unsqueeze(2).expand(value.shape)).double()
        own = own.masked_fill(~self._valid.unsqueeze(2), 0)
        width = value.shape[-1]
        self.second[site][index, :width] += own.square().sum((0, 1))
        if len(self.tokens) == 1:
            self.first[site][index, 0, :width] += own.sum((0, 1))
        else:
            self.first[site][index, : own.shape[1], :width] += own.sum(0)

    def add_experts(self, index: int, site: str, found: Added) -> None:
        """Add values of experts, of the tokens [N] of a batch. Experts that were not chosen have 0, which adds nothing."""
        rows, length = self._columns.shape
        tokens = self._columns + length * torch.arange(rows, device=self._columns.device).unsqueeze(1)
        values = found.values[tokens].double().masked_fill(~self._valid[:, :, None, None], 0)
        chosen = one_hot(found.experts[tokens], self._experts[index]).double() * self._valid[:, :, None, None]
        # Products, because sums into shared places have no fixed order on a GPU.
        first = torch.einsum("rtke,rtkn->ten", chosen, values).flatten(1)
        width = first.shape[1]
        if len(self.tokens) == 1:
            self.first[site][index, 0, :width] += first.sum(0)
        else:
            self.first[site][index, :length, :width] += first
        self.second[site][index, :width] += torch.einsum("rtke,rtkn->en", chosen, values.square()).flatten()

    def moments(self) -> Moments:
        """Divide the sums by the counts."""
        mean, deviation = {}, {}
        for site, sums in self.first.items():
            overall = sums.sum(1, keepdim=True) / self.tokens.sum()
            rows = [] if len(self.tokens) == 1 else [sums / self.tokens.unsqueeze(1)]
            mean[site] = torch.cat([*rows, overall], dim=1).float()
            variance = self.second[site] / self.tokens.sum() - overall[:, 0].square()
            deviation[site] = variance.clamp(min=0).sqrt().float()
        return Moments(mean, deviation)


def mean_ablation(
    frozen: FrozenModel,
    examples: Sequence[Example],
    micro_batches: MicroBatches,
    per_position: bool = False,
    prompts: str = "corrupted",
) -> Ablation:
    """Measure the mean ablation over the prompts of `examples`, see `moments`.

    The corrupted prompts are the default: they are the reference distribution of Wang et al. 2022 (arXiv 2211.00593, section
    2.1), like the clean ones in all but what the behaviour is about. With per_position positions are counted from the first
    token that is not padding; on a prompt longer than all of `examples` the mean over all positions stands beyond.
    """
    found = moments(frozen, examples, micro_batches, per_position=per_position, prompts=prompts)
    return found.ablation(full_name("mean", per_position))


def starting_ablation(
    settings: AblationConfig,
    frozen: FrozenModel,
    examples: Sequence[Example],
    micro_batches: MicroBatches,
    names: Container[str] = (),
) -> tuple[Ablation, Moments | None]:
    """Make the ablation of a run (at step 0, where constants are learned) and the moments that were measured for it.

    examples: the data set that moments are measured over. names: granularities with gates. Raises UserError if the model's
    activations are not finite.
    """
    if not KINDS[settings.name].needs_moments:
        return Ablation(settings.name), None
    found = moments(
        frozen, examples, micro_batches, per_position=settings.per_position, prompts=settings.prompts, names=names
    )
    if not all(mean.isfinite().all() for mean in found.mean.values()):
        raise model_error(
            frozen, f"means of the full model's activations are not finite on the {settings.prompts} prompts"
        )
    return found.ablation(settings.name), found
