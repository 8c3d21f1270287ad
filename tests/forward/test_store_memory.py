"""The store of corrupted activations in a scratch file holds the same values as in memory, and leaves nothing on the disk."""

import errno
import os

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.forward.corrupted_store import CorruptedStore
from bigcircuit.forward.store_memory import StoreMemory, is_in_file
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import SITE_WIDTH
from tests.helpers.tiny_models import TINY_CASES, tiny_model, uneven_examples

LLAMA = next(case.values[1] for case in TINY_CASES if case.values[0] == "llama")


def mapped_bytes(name: str) -> int:
    """Bytes of this process's mappings of files with `name` in their path."""
    with open("/proc/self/maps") as file:
        ranges = [line.split()[0].split("-") for line in file if name in line]
    return sum(int(last, 16) - int(first, 16) for first, last in ranges)


def test_a_store_in_a_file_is_the_store_in_memory(tmp_path):
    examples = uneven_examples()
    with Streams(tiny_model("llama", LLAMA), INTERCHANGE) as streams:
        stores = [
            CorruptedStore(streams, examples, MicroBatches(4), SITE_WIDTH, StoreMemory(tmp_path, limit))
            for limit in (1.0, 0.0)
        ]
    assert mapped_bytes(str(tmp_path)) >= stores[1].bytes > 0
    assert list(tmp_path.iterdir()) == [], "the file has no name any more"
    for example in examples:
        for layer in range(len(streams.frozen.layers)):
            pairs = zip(*(store.layer(example.id, layer) for store in stores), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


def test_a_store_within_the_limit_makes_no_file(tmp_path):
    StoreMemory(tmp_path / "absent", 1.0).allocate(100, torch.float32, Ranks())
    assert not (tmp_path / "absent").exists()


def test_the_limit_counts_a_copy_for_every_rank_of_a_host():
    assert not is_in_file(2**30, 4, 4.0)
    assert is_in_file(2**30, 5, 4.0)


def test_a_full_disk_is_one_line_before_a_page_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left on device\); free space, or set train\.store_memory"):
        StoreMemory(tmp_path, 0.0).allocate(100, torch.float32, Ranks())
    assert list(tmp_path.iterdir()) == []
