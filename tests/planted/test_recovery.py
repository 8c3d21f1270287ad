"""Recovery of a truth by rankings and circuits, by hand."""

import itertools

import pytest
import torch

from bigcircuit.model.granularity import GRANULARITIES, LayerShape
from bigcircuit.planted import recovery
from bigcircuit.planted.recovery import auroc, kept_by_kind

SHAPES = (LayerShape(3, 3, 1, 2, 3),) * 2


def test_recovery_by_hand():
    truth = {name: torch.zeros(2, g.width(SHAPES[0]), dtype=torch.bool) for name, g in GRANULARITIES.items()}
    truth["head"][0, :2] = truth["head"][1, 0] = True
    scores = {"head": torch.tensor([[5.0, -9.0, 4.0], [3.0, 1.0, 0.0]])}
    found = recovery(scores, truth, "head", SHAPES)  # keeps 5, 4 and 3; the truth has 5, -9 and 3
    assert found == (2 / 3, 2 / 3, (3 + 0 + 2) / 9)
    assert recovery(scores, truth, "head", SHAPES, "absolute") == (2 / 3, 2 / 3, (3 + 3 + 2) / 9)
    kept = {"head": torch.tensor([[True, False, False], [False] * 3])}
    assert recovery(scores, truth, "head", SHAPES, kept=kept)[:2] == (1, 1 / 3)
    assert recovery(scores, truth, "head", SHAPES, kept={"head": torch.zeros(2, 3, dtype=torch.bool)})[:2] == (1, 0)
    assert kept_by_kind(kept, {"head": [["a", "b", "b"], ["a", "a", "b"]]}, ["head"]) == {"a": 1 / 3, "b": 0}


def test_area_counts_pairs():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 6, (40,), generator=generator).numpy()  # many are equal
    wanted = torch.rand(40, generator=generator).numpy() < 0.4
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(values[wanted], values[~wanted])]
    assert auroc(values, wanted) == pytest.approx(sum(wins) / len(wins), abs=1e-12)
