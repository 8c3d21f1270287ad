"""Pairs for the induction model."""

from bigcircuit.planted.induction import induction_pairs


def test_the_answer_follows_the_first_occurrence_of_the_last_token():
    for row in induction_pairs(200, seed=1):
        clean, corrupted = row["clean"], row["corrupted"]
        for prompt, answer in ((clean, row["answers"]), (corrupted, row["wrong_answers"])):
            assert prompt[-1] == clean[-1] and len(set(prompt)) == len(prompt) - 1
            assert answer == [[prompt[prompt.index(prompt[-1]) + 1]]]
        assert sorted(clean) == sorted(corrupted)
        assert row["answers"] != row["wrong_answers"]
    assert induction_pairs(5) == induction_pairs(5) != induction_pairs(5, seed=1)
