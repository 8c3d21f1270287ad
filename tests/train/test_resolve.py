"""A run is resolved once: its DeepSpeed file, skeleton, tokenizer and members are each read a single time in a verb."""

import sys
from collections import Counter

import pytest

from bigcircuit.check import check_config
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.prune import prune
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.train.resolve import resolve
from tests.helpers.short_runs import QUICK

READ_ONCE = {
    "bigcircuit.model.deepspeed_config": "read_deepspeed",
    "bigcircuit.model.load": "whole_skeleton load_tokenizer load_config",
    "bigcircuit.config.load": "members",
    "bigcircuit.data.dataset": "load_task",
}


@pytest.fixture
def calls(monkeypatch):
    """Counts calls of the functions of READ_ONCE, by whatever name a module holds them."""
    counts = Counter()

    def counted(function):
        def wrapped(*arguments, **named):
            counts[function.__name__] += 1
            return function(*arguments, **named)

        return wrapped

    for home, names in READ_ONCE.items():
        for name in names.split():
            original = getattr(sys.modules[home], name)
            replacement = counted(original)
            for module in [m for key, m in sys.modules.items() if key.startswith("bigcircuit")]:
                if getattr(module, name, None) is original:
                    monkeypatch.setattr(module, name, replacement)
    return counts


def everything_once():
    return {name: 1 for names in READ_ONCE.values() for name in names.split()}


def test_prune_reads_everything_once(calls, tmp_path):
    config = load(None, {**QUICK, "output": str(tmp_path / "run"), "deepspeed": "configs/deepspeed/zero0.json"})
    calls.clear()
    prune(config, Ranks())
    assert calls == everything_once()


def test_check_reads_everything_once(calls, tmp_path):
    config = load(None, {**QUICK, "output": str(tmp_path / "run"), "population.seeds": 3})
    calls.clear()
    check_config(config, PlainConsole(quiet=True))
    assert calls == everything_once()


def test_a_changed_run_keeps_what_was_read_and_has_the_members_and_the_skeleton_of_its_settings(tmp_path):
    run = resolve(load(None, {**QUICK, "output": str(tmp_path / "run")}), Ranks())
    more = run.changed({"population.seeds": 3}, "test")
    assert [member.train.seed for member in more.members] == [0, 1, 2]
    assert more.model is run.model
    assert more.data is run.data
    half = run.changed({"model.dtype": "bfloat16"}, "test")
    assert str(half.model.skeleton.model.dtype) == "torch.bfloat16"
    assert str(run.model.skeleton.model.dtype) == "torch.float32"
    assert half.model.tokenizer is run.model.tokenizer
