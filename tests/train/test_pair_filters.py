"""Pairs that are added or left out after a look at what the model predicts."""

import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.streams import Streams
from bigcircuit.train.pair_filters import swap_pairs
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
