"""Mean ablation, and where learned constants start: activations of the full model over a data set.

Shapes: L layers, R rows of a batch, T positions, n width of a site in the widest layer, w in one layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO, Ablation, Moments, widest
from bigcircuit.config.schema import AblationConfig
from bigcircuit.data.collate import Batch
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import SITE_WIDTH
from bigcircuit.model.sites import FrozenModel

__all__ = [
    "INTERCHANGE",
    "ZERO",
    "Ablation",
    "Moments",
    "mean_ablation",
    "moments",
    "starting_ablation",
]

_PROMPTS = {"corrupted": ("corrupted",), "clean": ("clean",), "both": ("clean", "corrupted")}


def moments(
    frozen: FrozenModel, examples: Sequence[Example], passes: MicroBatches, *, per_position: bool, prompts: str
) -> Moments:
    """One forward pass over the examples; each token that is not padding weighs the same, sums are in float64.

    The tokens are those a circuit is trained on: the prompt and all but the last of its first answer. The ranks divide the
    work and all get the result. prompts: "corrupted", "clean" or "both". Without per_position T is 1.
    """
    longest = max(len(example.clean) + len(example.answers[0]) - 1 for example in examples)
    sums = _Sums(frozen, longest if per_position else 1)
    with Streams(frozen, ZERO) as streams:
        for piece in passes.over(examples, full=False):
            passes.ranks.stop_if_asked()
            sums.begin(piece.batch, piece.counts)
            for name in _PROMPTS[prompts]:
                sums.count()
                streams.watch(piece.batch, getattr(piece.batch, name), sums)
    passes.ranks.sum_([*sums.first.values(), *sums.second.values(), sums.tokens])
    return sums.moments()


class _Sums:
    """Adds up activations while the model runs; nothing but the sums is kept. A watcher of Streams."""

    def __init__(self, frozen: FrozenModel, positions: int) -> None:
        self.tokens = torch.zeros(positions, dtype=torch.float64, device=frozen.device)
        """[T or 1]: how many there were."""
        sizes = {site: (len(frozen.shapes), positions, widest(frozen.shapes, site)) for site in SITE_WIDTH}
        self.first = {site: self.tokens.new_zeros(size) for site, size in sizes.items()}
        self.second = {site: self.tokens.new_zeros(size[0], size[2]) for site, size in sizes.items()}

    def begin(self, batch: Batch, counts: bool) -> None:
        """Lay out the next batch: where in each row its tokens begin, and how many they are."""
        mask = torch.ones_like(batch.clean) if batch.attention_mask is None else batch.attention_mask
        place = torch.arange(mask.shape[1], device=mask.device)
        self._columns = (place + mask.argmax(1, keepdim=True)).clamp(max=mask.shape[1] - 1)
        self._valid = (place < mask.sum(1, keepdim=True)) & counts

    def count(self) -> None:
        """The tokens of one prompt of each row."""
        per_position = self._valid.sum(0)
        if len(self.tokens) == 1:
            self.tokens += per_position.sum()
        else:
            self.tokens[: len(per_position)] += per_position

    def __call__(self, index: int, site: str, value: Tensor) -> None:
        """Add activations [R, T, w]. They are summed in one fixed order, so that a second time gives the same bits."""
        own = value.gather(1, self._columns.unsqueeze(2).expand(value.shape)).double()
        own = own.masked_fill(~self._valid.unsqueeze(2), 0)
        width = value.shape[-1]
        self.second[site][index, :width] += own.square().sum((0, 1))
        if len(self.tokens) == 1:
            self.first[site][index, 0, :width] += own.sum((0, 1))
        else:
            self.first[site][index, : own.shape[1], :width] += own.sum(0)

    def moments(self) -> Moments:
        """Divide by the counts."""
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
    passes: MicroBatches,
    per_position: bool = False,
    prompts: str = "corrupted",
) -> Ablation:
    """Closed nodes output their mean over the prompts of `examples`, see `moments`.

    The corrupted prompts are the default: they are the reference distribution of Wang et al. 2022 (arXiv 2211.00593, section
    2.1), like the clean ones in all but what the behaviour is about. With per_position positions are counted from the first
    token that is not padding; on a prompt longer than all of `examples` the mean over all positions stands beyond.
    """
    found = moments(frozen, examples, passes, per_position=per_position, prompts=prompts)
    name = "mean_per_position" if per_position else "mean"
    return Ablation(name, {site: mean.unsqueeze(0) for site, mean in found.mean.items()})


def starting_ablation(
    settings: AblationConfig, frozen: FrozenModel, examples: Sequence[Example], passes: MicroBatches
) -> tuple[Ablation, Moments | None]:
    """The ablation of a run, at its first step where its constants are learned, and the moments it was made of.

    examples: what means are taken over.
    """
    if settings.kind in (INTERCHANGE.name, ZERO.name):
        return Ablation(settings.kind), None
    found = moments(frozen, examples, passes, per_position=settings.per_position, prompts=settings.prompts)
    return Ablation(settings.name, {site: mean.unsqueeze(0) for site, mean in found.mean.items()}), found
