"""Reference logits on disk: read again to the bit, and computed again when anything they depend on is another."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward import kept_logits
from bigcircuit.forward.kept_logits import KeptLogits
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams


@pytest.fixture
def computed(embedded, tmp_path, monkeypatch):
    """Function that makes reference logits and returns them in one tensor, with the number of passes that it took."""
    frozen, tokenizer = embedded
    examples = load_task(load(None, {"task.size": 30}).task, tokenizer, frozen.model.config).splits["train"]
    monkeypatch.setattr(kept_logits, "SECONDS_WORTH_A_FILE", 0.0)
    passes = []

    def compute(base="a", *, of=examples, micro=8, full=False):
        passes.clear()
        with Streams(frozen, INTERCHANGE) as streams:
            plain = streams.reference
            monkeypatch.setattr(streams, "reference", lambda batch: passes.append(1) or plain(batch))
            kept, batches = KeptLogits(tmp_path, {"model": base}), MicroBatches(micro)
            references = ReferenceLogits(streams, of, batches, full=full, kept=kept)
        return torch.cat([references(one) for one in batches.iterate(of, full=full)]), len(passes)

    compute.examples, compute.folder = examples, tmp_path
    return compute


def test_logits_are_read_again_to_the_bit(computed):
    first, passes = computed()
    again, more = computed()
    assert (passes, more) == (MicroBatches(8).count(len(computed.examples)), 0)
    assert torch.equal(first, again)


@pytest.mark.parametrize("change", [{"base": "b"}, {"micro": 4}, {"full": True}, {"of": 9}])
def test_logits_of_something_else_are_computed(computed, change):
    computed()
    change = {"of": computed.examples[:9]} if "of" in change else change
    _, passes = computed(**change)
    assert passes > 0
    assert computed(**change)[1] == 0, "and kept beside the others"


def test_a_damaged_file_is_ignored_and_replaced(computed):
    first, passes = computed()
    (path,) = computed.folder.iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    for damaged in (bytes(content), content[:1000], b""):
        path.write_bytes(damaged)
        again, more = computed()
        assert more == passes
        assert torch.equal(first, again)
    assert computed()[1] == 0


def test_logits_that_are_quick_to_compute_are_not_kept(computed, monkeypatch):
    monkeypatch.setattr(kept_logits, "SECONDS_WORTH_A_FILE", 60.0)
    assert computed()[1] == computed()[1] > 0
    assert not [*computed.folder.iterdir()]
