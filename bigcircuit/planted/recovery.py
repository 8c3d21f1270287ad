"""Recovery of the truth by a ranking of nodes or by a circuit."""

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
    """Agreement of the nodes of one level with the truth."""

    precision: float
    """Share of the kept nodes that are in the truth; 1 if none is kept."""
    recall: float
    """Share of the truth that is kept."""
    auroc: float
    """Probability that a node of the truth has a higher score than another node, equal scores counting half."""


def recovery(
    scores: NodeScores,
    truth: Mapping[str, Tensor],
    level: str,
    shapes: Sequence[LayerShape],
    ranking: Ranking = "signed",
    kept: Masks | None = None,
) -> Recovery:
    """Compare a circuit with the truth. kept: by default the best nodes, as many as the truth has: then precision is recall."""
    wanted = flat(truth, level, shapes).numpy()
    if kept is None:
        (kept,) = circuits_of(scores, level, [int(wanted.sum())], shapes, ranking)
    found = flat(kept, level, shapes).numpy()
    hits, size = int((wanted & found).sum()), int(found.sum())
    values = ranked(flat(scores, level, shapes).double(), ranking).numpy()
    return Recovery(hits / size if size else 1.0, hits / int(wanted.sum()), auroc(values, wanted))


def auroc(values: np.ndarray, wanted: np.ndarray) -> float:
    """Compute the area under the ROC curve by ranks: U of Mann and Whitney over its maximum (Hanley and McNeil 1982)."""
    result = stats.mannwhitneyu(values[wanted], values[~wanted])
    return float(result.statistic / (wanted.sum() * (~wanted).sum()))


def kept_by_kind(kept: Masks, kinds: Mapping[str, Sequence[Sequence[str]]], names: Sequence[str]) -> dict[str, float]:
    """Compute the share of the nodes of each kind that a circuit keeps, over the granularities `names` together."""
    total: Counter[str] = Counter()
    kept_nodes: Counter[str] = Counter()
    for name in names:
        for row, mask in zip(kinds[name], kept[name].tolist(), strict=True):
            total.update(row)
            kept_nodes.update(kind for kind, is_open in zip(row, mask, strict=False) if is_open)
    return {kind: kept_nodes[kind] / count for kind, count in sorted(total.items())}
