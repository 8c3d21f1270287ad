"""How well a ranking of nodes, or a circuit, recovers the truth."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from bigcircuit.attribution.node_scores import NodeScores, flat
from bigcircuit.evaluation.ranking import circuits_of
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.mib import Ranking, ranked
from bigcircuit.model.granularity import LayerShape


class Recovery(NamedTuple):
    """Nodes of one level, against the truth."""

    precision: float
    """Share of the kept nodes that are in the truth; 1 if none is kept."""
    recall: float
    """Share of the truth that is kept."""
    auroc: float
    """Chance that a node of the truth has a higher score than another node, equal scores counting half."""


def recovery(
    scores: NodeScores,
    truth: Mapping[str, Tensor],
    level: str,
    shapes: Sequence[LayerShape],
    ranking: Ranking = "signed",
    kept: Masks | None = None,
) -> Recovery:
    """Recovery by a circuit, by default the one of the best nodes that has the size of the truth: then precision is recall."""
    wanted = flat(truth, level, shapes).numpy()
    if kept is None:
        (kept,) = circuits_of(scores, level, [int(wanted.sum())], shapes, ranking)
    found = flat(kept, level, shapes).numpy()
    hits, size = int((wanted & found).sum()), int(found.sum())
    values = ranked(flat(scores, level, shapes).double(), ranking).numpy()
    return Recovery(hits / size if size else 1.0, hits / int(wanted.sum()), auroc(values, wanted))


def auroc(values: np.ndarray, wanted: np.ndarray) -> float:
    """Area under the ROC curve by ranks: U of Mann and Whitney over its largest value (Hanley and McNeil 1982)."""
    result = stats.mannwhitneyu(values[wanted], values[~wanted])
    return float(result.statistic / (wanted.sum() * (~wanted).sum()))


def kept_by_kind(kept: Masks, kinds: Mapping[str, Sequence[Sequence[str]]], names: Sequence[str]) -> dict[str, float]:
    """Share of the nodes of each kind that a circuit keeps, over some granularities together."""
    seen, open_ = Counter(), Counter()
    for name in names:
        for row, mask in zip(kinds[name], kept[name].tolist(), strict=True):
            seen.update(row)
            open_.update(kind for kind, is_open in zip(row, mask, strict=False) if is_open)
    return {kind: open_[kind] / count for kind, count in sorted(seen.items())}
