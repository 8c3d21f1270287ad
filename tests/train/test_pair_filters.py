"""Pairs that are added or left out after a look at what the model predicts."""

import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import score
from bigcircuit.train.pair_filters import Solved, count_solved, swap_pairs
from tests.helpers.tiny_models import TINY, tiny_examples, tiny_model


def test_pairs_serve_both_ways_where_the_model_shows_the_behaviour():
    frozen = tiny_model("llama", TINY)
    chosen = [example._replace(answers=((3,),), wrong_answers=((5,),)) for example in tiny_examples(6)]
    with Streams(frozen, INTERCHANGE) as streams:
        found = swap_pairs(streams, chosen, MicroBatches(4))
        assert found[:6] == chosen
        turned = {example.id: example for example in found[6:]}
        for example in chosen:
            ids = torch.tensor([example.corrupted])
            logits = frozen.model(input_ids=ids, use_cache=False).logits[0, -1]
            assert (-1 - example.id in turned) == bool(logits[5] > logits[3])
        for other in turned.values():
            origin = chosen[-1 - other.id]
            assert (other.clean, other.corrupted) == (origin.corrupted, origin.clean)
            assert (other.answers, other.wrong_answers) == (origin.wrong_answers, origin.answers)
        assert 0 < len(turned) < 6, "some of either kind, or the test shows nothing"
        both = [*chosen, *turned.values()]
        assert swap_pairs(streams, both, MicroBatches(4)) == both, "nothing is doubled that is there both ways"


def test_solved_pairs_are_counted_as_a_score_of_the_full_model_counts_them_and_without_a_pass(monkeypatch):
    """Each once; swapped pairs and training pairs with longer answers, whose ends training does not score, not at all."""
    frozen, micro_batches = tiny_model("llama", TINY), MicroBatches(4)
    single = [e._replace(answers=((3,), (4,)), wrong_answers=((5,),)) for e in tiny_examples(8)]
    longer = [e._replace(id=20 + e.id) for e in tiny_examples(3)]
    trained, held_out = [*single[:6], single[0]._replace(id=-1), *longer[:2]], [single[5], *single[6:], longer[2]]
    with Streams(frozen, INTERCHANGE) as streams:
        targets = [
            Targets(held_out, ReferenceLogits(streams, held_out, micro_batches, full=True, shuffled=7), True),
            Targets(trained, ReferenceLogits(streams, trained, micro_batches, shuffled=7), False),
        ]
        expected = score(streams, [*single, longer[2]], None, micro_batches)
        monkeypatch.setattr(streams, "reference", None)
        found = count_solved(targets, micro_batches)
    assert (found.right, found.pairs) == (int(expected["accuracy"].sum()), 9)
    assert 0 < found.right < 9, "some of either kind, or the test shows nothing"
    assert abs(found.logit_difference - expected["logit_difference"].mean().item()) < 1e-5


def test_a_behaviour_that_the_model_does_not_show_is_warned_of_with_the_setting_that_filters():
    assert list(Solved(58, 60, 3.71).lines()) == [
        "the full model prefers the right answer on 58 of 60 pairs (mean logit difference 3.7)"
    ]
    assert len(list(Solved(8, 10, 1.0).lines())) == 1
    _, warning = Solved(7, 10, 0.1).lines()
    assert warning.startswith("warning: that is less than 80%, ")
    assert "set task.keep to solved" in warning
