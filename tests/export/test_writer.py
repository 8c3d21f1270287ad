"""Files of weights as they come to the disk."""

import errno
import os

import psutil
import pytest
import torch
from safetensors.torch import load_file

from bigcircuit.errors import UserError
from bigcircuit.export import writer


def planned(count):
    return [
        writer.Planned(f"t{n}", (3, n + 1), torch.float32, lambda n=n: torch.full((3, n + 1), n)) for n in range(count)
    ]


def open_files():
    return {one.path for one in psutil.Process().open_files()}


def test_every_file_of_several_is_on_the_disk_and_closed(tmp_path, monkeypatch):
    real, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size) or real(descriptor))
    written = []
    writer.write_weights(tmp_path, planned(5), written.append, shard=60)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 4 and sum(written) == sum(one.bytes for one in planned(5))
    assert synced[:4] == [path.stat().st_size for path in files], "whole when the disk was asked"
    found = {name: value for path in files for name, value in load_file(path).items()}
    assert all(torch.equal(found[one.name], one.make()) for one in planned(5)) and len(found) == 5
    assert not {str(path) for path in files} & open_files()


def test_a_disk_that_fills_up_while_a_later_file_is_written_is_told(tmp_path, monkeypatch):
    real, asked = os.fsync, []

    def full(descriptor):
        asked.append(descriptor)
        if len(asked) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="model-00002-of-00004.safetensors"):
        writer.write_weights(tmp_path, planned(5), lambda _: None, shard=60)
    assert not any(path.startswith(str(tmp_path)) for path in open_files())
