"""Nodes of a widened sub-layer and what they write, by hand."""

import random
from collections import Counter

import pytest
import torch

from bigcircuit.errors import UserError
from bigcircuit.planted.decoys import PlantedNode, Sampler, fill, writes


def sampler(shared: float) -> Sampler:
    return Sampler(random.Random(0), torch.Generator().manual_seed(0), True, shared)


@pytest.mark.parametrize("room", [4, 5, 12])
def test_every_needed_original_is_there_once_and_the_room_is_filled(room):
    nodes = fill([1, 3], range(4), room, ["silent", "opposed"], sampler(0.5))
    assert len(nodes) == room
    assert {node.source for node in nodes if node.kind in ("original", "shared")} == {1, 3}
    for original in (1, 3):
        parts = [node.scale for node in nodes if node.source == original and node.kind in ("original", "shared")]
        assert sum(parts) == pytest.approx(1)
    assert Counter(node.kind for node in nodes)["shared"] == 2, "half of two originals, in two copies"
    pairs = Counter(node.twin for node in nodes if node.kind == "opposed")
    assert set(pairs.values()) <= {2}
    with pytest.raises(UserError, match="2 nodes are needed but the widened layer has 1"):
        fill([1, 3], range(4), 1, ["silent"], sampler(0))


def test_what_is_written_adds_up_to_the_originals():
    originals = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    nodes = [
        PlantedNode(1, "shared", 0.25),
        PlantedNode(1, "shared", 0.75),
        PlantedNode(0, "original", 1.0),
        PlantedNode(0, "opposed", 1.0, 4),
        PlantedNode(0, "opposed", -1.0, 4),
        PlantedNode(0, "silent", 1.0),
        PlantedNode(1, "unread", 1.0),
    ]
    written = writes(nodes, originals, torch.tensor([2.0]), sampler(0))
    torch.testing.assert_close(written[:6].sum(0), originals.sum(0))
    assert written[3].norm() == pytest.approx(2) and not written[5].any()
    assert written[6].std() == 0 and written[6].norm() == pytest.approx(2)
