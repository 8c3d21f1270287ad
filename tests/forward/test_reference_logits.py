"""Targets of training: the full model's logits, or those of another pair."""

from bigcircuit.data.pair import Example
from bigcircuit.forward.reference_logits import partners


def test_random_labels_are_those_of_another_pair_alike():
    examples = [
        Example(id=i, clean=(1,), corrupted=(2,), answers=((3,) * (1 + i % 2),), wrong_answers=((4,),), source="")
        for i in range(9)
    ]
    examples.append(Example(id=9, clean=(1,), corrupted=(2,), answers=((3, 3, 3),), wrong_answers=((4,),), source=""))
    whose = partners(examples, full=False, seed=5)
    assert sorted(whose) == sorted(whose.values()) == list(range(9)), "a permutation; the odd one out has no partner"
    assert all(a != b and (a - b) % 2 == 0 for a, b in whose.items())
    assert partners(examples, full=False, seed=5) == whose != partners(examples, full=False, seed=6)
