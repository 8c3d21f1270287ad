"""A model worker without Ray: members come, share passes, go, fail, and find what they would find alone."""

import json

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import OutOfMemory, UserError
from bigcircuit.prune import prune
from bigcircuit.sweep.config import Sweep, SweepSettings
from bigcircuit.sweep.messages import Entry
from bigcircuit.sweep.model_replica import Replica
from tests.helpers.short_runs import QUICK

SPACE = SweepSettings(space={"target.total": [200]})
EVERYTHING = 10**6


def settings(tmp_path, **overrides):
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    return Sweep(load(None, {**QUICK, "output": str(tmp_path), **values}), SPACE)


def entry(sweep, number, state=None, **changed):
    own = {key.replace("__", "."): value for key, value in changed.items()}
    return Entry(number, sweep.trial(own, number), state)


def to_the_end(host, numbers, entries=()):
    """Everything that comes of letting these trials run, in order."""
    seen = [host.advance(entries, [], numbers, EVERYTHING)]
    while seen[-1].steps:
        seen.append(host.advance([], [], numbers, EVERYTHING))
    return seen


def endings(seen):
    return {number: found for progress in seen for number, found in progress.endings.items()}


def same(found, other, apart=1e-6):
    assert found.log_alpha.keys() == other.log_alpha.keys()
    for name, values in other.log_alpha.items():
        torch.testing.assert_close(found.log_alpha[name], values, atol=apart, rtol=0)
        assert torch.equal(found.masks[name], other.masks[name])


@pytest.mark.parametrize("gates", ["auto", "hard_concrete"])
def test_a_trial_that_joins_late_finds_what_prune_finds(tmp_path, gates):
    sweep, host = settings(tmp_path / "sweep", gates__parametrisation=gates), Replica(Ranks())
    first = host.advance([entry(sweep, 0, train__seed=5), entry(sweep, 1, target__total=90)], [], [0, 1], 4)
    assert first.steps == {0: 4, 1: 4}
    late = entry(sweep, 2, target__total=120, train__lr=0.05)
    caught_up = host.advance([late], [], [0, 1, 2], EVERYTHING)
    assert caught_up.steps == {2: 4}, "who is behind goes first, up to where it meets the others"
    together = host.advance([], [], [0, 1, 2], EVERYTHING)
    assert together.steps == {0: 6, 1: 6, 2: 6}
    assert together.validations.keys() == {0, 1, 2}
    found = endings(to_the_end(host, [0, 1, 2]))[2]
    alone = prune(late.config.model_copy(update={"output": str(tmp_path / "alone")}), Ranks())
    same(found.circuits[0], Circuit.load(alone.path / "circuit.safetensors"))
    summary, expected = found.summary(["circuit.safetensors"], 0.0), json.loads(alone.summary.read_text())
    assert summary["members"][0]["kept"] == expected["members"][0]["kept"]
    for name, score in expected["members"][0]["scores"].items():
        assert summary["members"][0]["scores"][name]["mean"] == pytest.approx(score["mean"], abs=1e-5), name


def test_a_trial_goes_on_elsewhere_from_its_state(tmp_path):
    sweep = settings(tmp_path, gates__parametrisation="hard_concrete")
    whole = endings(to_the_end(Replica(Ranks()), [0], [entry(sweep, 0)]))[0]
    states = Replica(Ranks()).advance([entry(sweep, 0), entry(sweep, 1, train__seed=3)], [], [0, 1], 5).states
    moved = to_the_end(Replica(Ranks()), [0], [entry(sweep, 0, states[0])])
    assert moved[0].steps == {0: 6}
    same(endings(moved)[0].circuits[0], whole.circuits[0])


def test_a_slot_is_free_at_once_and_the_others_do_not_notice(tmp_path):
    sweep, host = settings(tmp_path), Replica(Ranks())
    host.advance([entry(sweep, 0), entry(sweep, 1, train__seed=3)], [], [0, 1], 5)
    after = host.advance([], [1], [0, 1], EVERYTHING)
    assert after.steps == {0: 6}
    alone = endings(to_the_end(Replica(Ranks()), [0], [entry(sweep, 0)]))[0]
    same(endings(to_the_end(host, [0]))[0].circuits[0], alone.circuits[0])


def test_bad_trials_fail_in_one_line_and_the_rest_finish(tmp_path):
    sweep = settings(tmp_path)
    entries = [entry(sweep, 0), entry(sweep, 1, target__total=5000), entry(sweep, 2, train__kl=1e39)]
    seen = to_the_end(Replica(Ranks()), [0, 1, 2], entries)
    failed = {number: reason for progress in seen for number, reason in progress.failed.items()}
    assert failed[1] == "target.total is 5000 but the model has 1792; ask for fewer"
    assert failed[2].startswith("the loss or its gradient is not finite")
    assert endings(seen).keys() == {0}
    same(endings(seen)[0].circuits[0], endings(to_the_end(Replica(Ranks()), [0], entries[:1]))[0].circuits[0])


def test_settings_that_cannot_share_a_pass_share_the_model(tmp_path):
    sweep, host = settings(tmp_path), Replica(Ranks())
    entries = [
        entry(sweep, 0),
        entry(sweep, 1, ablation__kind="zero"),
        entry(sweep, 2, gates__parametrisation="hard_concrete"),
    ]
    seen = to_the_end(host, [0, 1, 2], entries)
    assert all(len(progress.steps) <= 1 for progress in seen), "three kinds of passes"
    assert endings(seen).keys() == {0, 1, 2}
    models = {id(lot.ground.streams.frozen) for lot in host._lots.values()}
    assert len(host._lots) == 2 and len(models) == 1
    named = [found.circuits[0].metadata["ablation"] for _, found in sorted(endings(seen).items())]
    assert named == ["interchange", "zero", "interchange"]


def test_members_of_different_lengths_and_learned_constants(tmp_path):
    sweep, host = settings(tmp_path, ablation__kind="optimal"), Replica(Ranks())
    short = entry(sweep, 1, train__steps=7, ablation__lr=0.05)
    seen = to_the_end(host, [0, 1], [entry(sweep, 0), short])
    assert [sorted(progress.endings) for progress in seen if progress.endings] == [[1], [0]]
    alone = endings(to_the_end(Replica(Ranks()), [1], [short]))[1].circuits[0]
    # Alone it uses fewer examples, whose reference logits are computed in other batches.
    same(endings(seen)[1].circuits[0], alone, apart=1e-5)
    assert alone.constants


def test_what_the_user_has_to_mend_is_said_before_any_trial(tmp_path):
    with pytest.raises(UserError, match="task.name 'nothing' is not"):
        Replica(Ranks()).open(settings(tmp_path, task__name="nothing").config)
    Replica(Ranks()).open(settings(tmp_path).config)


def test_eight_members_are_what_each_is_alone(tmp_path):
    sweep = settings(tmp_path, train__steps=4, train__validate_every=4)
    entries = [entry(sweep, number, train__seed=number, target__total=100 + 50 * number) for number in range(8)]
    seen = to_the_end(Replica(Ranks()), range(8), entries)
    assert len(seen[0].endings) == 8, "one pass for all"
    for number in (0, 7):
        alone = endings(to_the_end(Replica(Ranks()), [number], [entries[number]]))[number]
        same(endings(seen)[number].circuits[0], alone.circuits[0])


def test_what_a_trial_meets_alone_is_its_own_failure(tmp_path, monkeypatch):
    sweep, host = settings(tmp_path), Replica(Ranks())
    monkeypatch.setattr("bigcircuit.sweep.model_replica.update", raising(RuntimeError("no such luck\nat all")))
    assert host.advance([entry(sweep, 0)], [], [0], 1).failed == {0: "RuntimeError: no such luck"}
    monkeypatch.setattr(
        "bigcircuit.sweep.model_replica.update", raising(RuntimeError("can't allocate memory: 8 bytes"))
    )
    said = host.advance([entry(sweep, 1)], [], [1], 1).failed[1]
    assert said.startswith("out of memory") and "try --" in said
    with pytest.raises(OutOfMemory, match="try --"):
        host.advance([entry(sweep, 2), entry(sweep, 3)], [], [2, 3], 1)
    monkeypatch.undo()
    assert host.advance([entry(sweep, 4)], [], [4], 1).steps == {4: 1}


def raising(error):
    def call(*_):
        raise error

    return call
