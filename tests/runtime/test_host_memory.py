"""The memory of the machine that is asked about."""

import pytest
import torch

from bigcircuit.errors import UserError
from bigcircuit.runtime.host_memory import GIB, FreeMemory


@pytest.fixture(params=[False, True], ids=["no GPU", "GPU"])
def has_gpu(request, monkeypatch):
    """A machine with or without a GPU of 5 GiB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * GIB, 8 * GIB))
    return request.param


def test_the_device_of_the_run_says_whose_memory_is_measured(has_gpu):
    assert FreeMemory.measure().is_gpu == FreeMemory.asked(None, None).is_gpu == has_gpu
    assert not FreeMemory.measure("cpu").is_gpu and not FreeMemory.asked(None, None, "cpu").is_gpu
    if has_gpu:
        assert FreeMemory.asked(None, None, "cuda") == FreeMemory.measure("cuda") == FreeMemory(5 * GIB, True)
        return
    with pytest.raises(UserError, match="model.device is cuda and torch sees no GPU here"):
        FreeMemory.measure("cuda")
    with pytest.raises(
        UserError, match="model.device cuda: this machine has no GPU; say with --memory how many GiB a GPU"
    ):
        FreeMemory.asked(None, None, "cuda")


def test_memory_that_is_given_is_of_the_device_that_is_asked_for(has_gpu):
    assert FreeMemory.asked(None, 80) == FreeMemory(80 * GIB, has_gpu)
    for device in ("cuda", "cpu"):
        expected = FreeMemory(80 * GIB, device == "cuda")
        assert FreeMemory.asked(device, 80) == FreeMemory.asked(None, 80, device) == expected
        assert FreeMemory.asked(device, 80, device) == expected


def test_two_answers_to_one_question_are_refused(has_gpu):
    with pytest.raises(UserError, match="--device cuda: model.device is cpu; leave one out"):
        FreeMemory.asked("cuda", 80, "cpu")
    other, what = ("cpu", "that host") if has_gpu else ("cuda", "a GPU")
    with pytest.raises(UserError, match=f"--device {other}: this machine has .*how many GiB {what} has free"):
        FreeMemory.asked(other, None)
