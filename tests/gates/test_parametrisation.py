"""The choice of a parametrisation: which settings go with it, and which one `auto` takes."""

import pytest

from bigcircuit.config.load import load, members
from bigcircuit.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"gates.parametrisation": "sigmoid_top_k"}, "no size is asked for; set target.total"),
        ({"gates.parametrisation": "sigmoid_top_k", "target.head": 3, "penalty.head": 1.0}, "a penalty is set"),
        (
            {"gates.parametrisation": "sigmoid_top_k", "population.members": [{"target.head": 3}, {"target.total": 9}]},
            "give all the same target",
        ),
        ({"gates.sampled_sizes": True}, "gates.sampled_sizes is true but gates.parametrisation is hard_concrete"),
    ],
)
def test_what_does_not_suit_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message):
        members(load(None, overrides))


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        ({}, "hard_concrete"),
        ({"target.total": 9}, "sigmoid_top_k"),
        ({"target.total": 9, "penalty.head": 0.1}, "hard_concrete"),
        ({"population.members": [{"target.total": 9}, {"penalty.head": 0.1}]}, "hard_concrete"),
    ],
)
def test_auto_is_top_k_where_sizes_are_asked_for(overrides, chosen):
    assert {member.gates.parametrisation for member in members(load(None, overrides))} == {chosen}
