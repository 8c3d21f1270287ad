"""Rows of two streams in what the outer model hands to layers."""

import torch

from bigcircuit.forward.rows import Division, Rows, places_of_rows


def test_places_are_those_whose_size_follows_the_rows():
    two = {(0, "alibi"): (8, 1, 5), (0, "bias"): (4, 1, 5), (0, "states"): (4, 2, 5, 8), (0, "gone"): (2, 3)}
    three = {(0, "alibi"): (12, 1, 5), (0, "bias"): (4, 1, 5), (0, "states"): (4, 3, 5, 8)}
    assert places_of_rows(two, three) == {(0, "alibi"): 0, (0, "bias"): None, (0, "states"): 1}


def test_sizes_that_happen_to_equal_the_rows_mislead_nobody():
    """4 heads and 4 rows: a bias of a row a head is shared, one of a row a head of every prompt is divided."""
    division = Division(Rows(2, 2), {(0, "alibi"): 0, (0, "bias"): None})
    alibi, bias = torch.arange(16).view(16, 1, 1), torch.arange(4).view(4, 1, 1)
    assert division.take(alibi, "masked", (0, "alibi")).flatten().tolist() == list(range(8))
    assert division.take(alibi, "corrupted", (0, "alibi")).flatten().tolist() == list(range(8, 16))
    assert division.take(bias, "corrupted", (0, "bias")) is bias
    positions = torch.arange(3).unsqueeze(0)
    assert division.take(positions, "corrupted", (0, "position_ids")) is positions, "the same for all rows"


def test_state_that_layers_keep_in_a_dict_is_kept_a_stream():
    division, shared = Division(Rows(1, 1), {}), {"old": torch.arange(2).view(2, 1)}
    own = {stream: division.take(shared, stream, (0, "state")) for stream in Rows._fields}
    own["masked"]["new"] = 1
    assert division.take(shared, "masked", (1, "state"))["new"] == 1
    assert "new" not in division.take(shared, "corrupted", (1, "state")) and "new" not in shared
    assert [own[stream]["old"].item() for stream in Rows._fields] == [0, 1]


def test_what_a_layer_returns_beside_its_hidden_state_goes_to_its_stream():
    division = Division(Rows(1, 1), {})
    masked, corrupted = (None, torch.zeros(1, 2)), (None, torch.ones(1, 2))
    division.note_returned(masked, corrupted)
    assert division.take(masked[1], "corrupted", (1, "routing")) is corrupted[1]
    assert division.take(masked[1], "masked", (1, "routing")) is masked[1]
