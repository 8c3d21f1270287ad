"""Circuits of the best nodes, their order, and the ends of the curve."""

import numpy as np
import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.attribution.node_scores import LEVELS, flat, level_size
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.evaluation.ranking import ScoresBySize, circuits_of, scores_by_size
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import count
from bigcircuit.metrics.mib import areas
from bigcircuit.metrics.score import score
from bigcircuit.model.granularity import GRANULARITIES
from tests.helpers.random_scores import SHAPES, random_scores
from tests.helpers.tiny_models import TINY, tiny_examples, tiny_model


@pytest.mark.parametrize("ranking", ["signed", "absolute"])
@pytest.mark.parametrize("level", [level for level in LEVELS if level_size(level, SHAPES)])
def test_the_best_nodes_of_a_level_are_kept_and_everything_else(level, ranking):
    scores = random_scores()
    nodes = level_size(level, SHAPES)
    order = flat(scores, level, SHAPES)
    order = (order.abs() if ranking == "absolute" else order).argsort(descending=True)
    sites = {"attention_neuron": "attention", "mlp_neuron": "mlp"}
    ranked = {site for name in LEVELS[level] for site in GRANULARITIES[name].sites}
    circuits = circuits_of(scores, level, range(nodes + 1), SHAPES, ranking)
    for size, masks in enumerate(circuits):
        opened = flat(masks, level, SHAPES).nonzero().flatten().tolist()
        assert sorted(opened) == sorted(order[:size].tolist())
        for leaf, site in sites.items():
            if site not in ranked and level != "mlp_output":
                assert count(masks)[leaf] == level_size(leaf, SHAPES)


def test_coarse_nodes_are_closed_whole_and_open_whole():
    (masks,) = circuits_of({"block": torch.tensor([[-2.0], [-1.0]])}, "block", [1], SHAPES)
    assert masks["attention_neuron"].tolist() == [[False] * 8, [True] * 8]
    assert masks["mlp_neuron"].tolist() == [[False] * 6, [True] * 3 + [False] * 3]  # padded
    (masks,) = circuits_of({"kv_group": torch.tensor([[0.0, 1.0], [-1.0, 2.0]])}, "kv_group", [2], SHAPES)
    assert masks["head"].tolist() == [[False, False, True, True]] * 2
    assert count(masks)["mlp_neuron"] == 9


def test_scores_of_any_scale_keep_their_order():
    scores = {
        "attention_neuron": 1e-30 * random_scores()["attention_neuron"],
        "mlp_neuron": 1e30 * random_scores()["mlp_neuron"],
    }
    (masks,) = circuits_of(scores, "neuron", [7], SHAPES)
    assert torch.equal(flat(masks, "neuron", SHAPES).nonzero().flatten(),
                       flat(scores, "neuron", SHAPES).topk(7).indices.sort().values)  # fmt: skip


@pytest.mark.parametrize("level", ["neuron", "head", "mlp"])
def test_curve_ends_at_the_empty_and_the_full_circuit(level):
    frozen = tiny_model("llama", TINY)
    nodes = level_size(level, frozen.shapes)
    chosen, micro_batches = tiny_examples(4), MicroBatches(2)
    scores = random_scores(shapes=frozen.shapes)
    with Streams(frozen, INTERCHANGE) as streams:
        found = scores_by_size(
            lambda circuits: score(streams, chosen, circuits, micro_batches, at_once=2),
            [scores],
            level,
            [0, nodes // 2, nodes],
            frozen.shapes,
        )
        first, middle, last = found.points()
        closed = circuits_of(scores, level, [0], frozen.shapes)
        empty, full = score(streams, chosen, closed, micro_batches), score(streams, chosen, None, micro_batches)
    assert count(closed[0])[level if level != "neuron" else "total"] == 0
    assert first.kl == pytest.approx(empty["kl"].mean().item(), rel=1e-5)
    assert first.logit_difference == pytest.approx(empty["logit_difference"].mean().item(), rel=1e-5)
    for point, end in ((first, 0), (last, 1)):
        assert (point.faithfulness, point.low, point.high) == pytest.approx((end, end, end), abs=1e-4)
    assert middle.kl_low <= middle.kl <= middle.kl_high and middle.low <= middle.faithfulness <= middle.high
    assert middle.sd == middle.kl_sd == 0
    assert last.kl == pytest.approx(0, abs=1e-6)
    assert last.exact_match == 1
    assert last.logit_difference == pytest.approx(full["logit_difference"].mean().item(), rel=1e-5)
    assert (middle.fraction, middle.size) == ((nodes // 2) / nodes, nodes // 2)
    assert last.neurons == level_size("neuron", frozen.shapes) > middle.neurons
    assert middle.kl > 1e-4


def test_random_rankings_are_averaged_with_their_spread():
    """By hand from the scores of every example: means over draws, deviations between them, areas of each."""
    rng = np.random.default_rng(0)
    draws, count, examples_ = 3, 10, 6
    difference, ends = (
        rng.normal(size=(draws, count, examples_)),
        np.stack([np.zeros(examples_), rng.gamma(5, size=examples_)]),
    )
    found = ScoresBySize(
        nodes=10,
        sizes=range(count),
        neurons=[0] * count,
        kl=difference**2,
        logit_difference=difference,
        exact_match=difference > 0,
        ends=ends,
    )
    f = difference.mean(-1) / ends[1].mean()
    points = found.points()
    assert [p.faithfulness for p in points] == pytest.approx(f.mean(0))
    assert [p.sd for p in points] == pytest.approx(f.std(0))
    assert [p.kl for p in points] == pytest.approx((difference**2).mean((0, 2)))
    assert [p.kl_sd for p in points] == pytest.approx((difference**2).mean(2).std(0))
    both, apart = found.areas()
    each = np.array([areas(row) for row in f])
    assert apart == pytest.approx(each)
    assert both.mean == pytest.approx(each.mean(0))
    assert (both.low < both.mean).all() and (both.mean < both.high).all()
