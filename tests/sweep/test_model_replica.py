"""A replica without Ray: members take slots, share passes, are evicted, fail, and find what they would find alone."""

import json

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import OutOfMemory, UserError
from bigcircuit.prune import prune
from bigcircuit.sweep.config import Sweep, SweepSettings
from bigcircuit.sweep.messages import Assignment
from bigcircuit.sweep.model_replica import Replica
from tests.helpers.short_runs import QUICK

SPACE = SweepSettings(space={"target.total": [200]})
EVERYTHING = 10**6


def settings(tmp_path, **overrides):
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    return Sweep(load(None, {**QUICK, "output": str(tmp_path), **values}), SPACE)


def assigned(sweep, number, state=None, **changed):
    own = {key.replace("__", "."): value for key, value in changed.items()}
    return Assignment(number, sweep.trial_config(own, number), state)


def to_the_end(replica, numbers, assignments=()):
    """The progress of every call until these trials have ended."""
    seen = [replica.advance(assignments, [], numbers, EVERYTHING)]
    while seen[-1].steps:
        seen.append(replica.advance([], [], numbers, EVERYTHING))
    return seen


def results(seen):
    return {number: found for progress in seen for number, found in progress.results.items()}


def same(found, other, apart=1e-6):
    assert found.log_alpha.keys() == other.log_alpha.keys()
    for name, values in other.log_alpha.items():
        torch.testing.assert_close(found.log_alpha[name], values, atol=apart, rtol=0)
        assert torch.equal(found.masks[name], other.masks[name])


def test_what_takes_long_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("bigcircuit.runtime.progress._LINE_SECONDS", 1e-3)
    monkeypatch.setattr("bigcircuit.runtime.progress._SHOWN_AFTER", 5e-4)
    sweep, sent = settings(tmp_path), []
    replica = Replica(Ranks(), sent.append)
    replica.load(sweep.config)
    found = dict.fromkeys(line.partition(":")[0] for line in sent)
    first = ["reading model config and pairs", "loading weights", "checking the model", "swapped pairs"]
    assert list(found) == [*first, "reference logits", "corrupted activations"]
    replica.advance([assigned(sweep, 0)], [], [0], EVERYTHING)
    assert "update" in {line.partition(":")[0] for line in sent}


@pytest.mark.parametrize("gates", ["auto", "hard_concrete"])
def test_a_trial_that_joins_late_finds_what_prune_finds(tmp_path, gates):
    sweep, replica = settings(tmp_path / "sweep", gates__parametrisation=gates), Replica(Ranks())
    first = replica.advance([assigned(sweep, 0, train__seed=5), assigned(sweep, 1, target__total=90)], [], [0, 1], 4)
    assert first.steps == {0: 4, 1: 4}
    assert len(first.notes) == 1 and first.notes[0].startswith("the full model prefers the right answer on "), (
        "said once"
    )
    late = assigned(sweep, 2, target__total=120, train__lr=0.05)
    caught_up = replica.advance([late], [], [0, 1, 2], EVERYTHING)
    assert caught_up.notes == []
    assert caught_up.steps == {2: 4}, "a trial that is behind trains first, up to the step of the others"
    together = replica.advance([], [], [0, 1, 2], EVERYTHING)
    assert together.steps == {0: 6, 1: 6, 2: 6}
    assert together.validations.keys() == {0, 1, 2}
    found = results(to_the_end(replica, [0, 1, 2]))[2]
    alone = prune(late.config.model_copy(update={"output": str(tmp_path / "alone")}), Ranks())
    same(found.circuits[0], Circuit.load(alone.path / "circuit.safetensors"))
    summary, expected = found.summary(["circuit.safetensors"], 0.0), json.loads(alone.summary.read_text())
    assert summary["members"][0]["kept"] == expected["members"][0]["kept"]
    for name, score in expected["members"][0]["scores"].items():
        assert summary["members"][0]["scores"][name]["mean"] == pytest.approx(score["mean"], abs=1e-5), name


def test_a_trial_resumes_elsewhere_from_its_state(tmp_path):
    sweep = settings(tmp_path, gates__parametrisation="hard_concrete")
    whole = results(to_the_end(Replica(Ranks()), [0], [assigned(sweep, 0)]))[0]
    states = Replica(Ranks()).advance([assigned(sweep, 0), assigned(sweep, 1, train__seed=3)], [], [0, 1], 5).states
    moved = to_the_end(Replica(Ranks()), [0], [assigned(sweep, 0, states[0])])
    assert moved[0].steps == {0: 6}
    same(results(moved)[0].circuits[0], whole.circuits[0])


def test_a_trial_does_not_resume_with_other_files(tmp_path):
    sweep = settings(tmp_path)
    state = Replica(Ranks()).advance([assigned(sweep, 0)], [], [0], 5).states[0]
    other = state._replace(base={**state.base, "tokenizer files": "1" * 64})
    failures = Replica(Ranks()).advance([assigned(sweep, 0, other)], [], [0], EVERYTHING).failures
    assert failures[0].startswith(
        "trial 0: its checkpoint was made with other tokenizer files (sha256 111111111111, now "
    )


def test_a_slot_is_free_at_once_and_the_others_do_not_notice(tmp_path):
    sweep, replica = settings(tmp_path), Replica(Ranks())
    replica.advance([assigned(sweep, 0), assigned(sweep, 1, train__seed=3)], [], [0, 1], 5)
    after = replica.advance([], [1], [0, 1], EVERYTHING)
    assert after.steps == {0: 6}
    alone = results(to_the_end(Replica(Ranks()), [0], [assigned(sweep, 0)]))[0]
    same(results(to_the_end(replica, [0]))[0].circuits[0], alone.circuits[0])


def test_bad_trials_fail_in_one_line_and_the_rest_finish(tmp_path):
    sweep = settings(tmp_path)
    assignments = [assigned(sweep, 0), assigned(sweep, 1, target__total=5000), assigned(sweep, 2, train__kl=3e38)]
    seen = to_the_end(Replica(Ranks()), [0, 1, 2], assignments)
    failed = {number: reason for progress in seen for number, reason in progress.failures.items()}
    assert failed[1] == "target.total is 5000 but the model has 1792; ask for fewer"
    assert failed[2].startswith("the loss or its gradient is not finite")
    assert results(seen).keys() == {0}
    same(results(seen)[0].circuits[0], results(to_the_end(Replica(Ranks()), [0], assignments[:1]))[0].circuits[0])


def test_settings_that_cannot_share_a_pass_share_the_model(tmp_path):
    sweep, replica = settings(tmp_path), Replica(Ranks())
    assignments = [
        assigned(sweep, 0),
        assigned(sweep, 1, ablation__kind="zero"),
        assigned(sweep, 2, gates__parametrisation="hard_concrete"),
    ]
    seen = to_the_end(replica, [0, 1, 2], assignments)
    assert all(len(progress.steps) <= 1 for progress in seen), "three kinds of passes"
    assert results(seen).keys() == {0, 1, 2}
    models = {id(one.context.streams.frozen) for one in replica._shared.values()}
    assert len(replica._shared) == 2 and len(models) == 1
    named = [found.circuits[0].metadata["ablation"] for _, found in sorted(results(seen).items())]
    assert named == ["interchange", "zero", "interchange"]


def test_members_of_different_lengths_and_learned_constants(tmp_path):
    sweep, replica = settings(tmp_path, ablation__kind="optimal"), Replica(Ranks())
    short = assigned(sweep, 1, train__steps=7, ablation__lr=0.05)
    seen = to_the_end(replica, [0, 1], [assigned(sweep, 0), short])
    assert [sorted(progress.results) for progress in seen if progress.results] == [[1], [0]]
    alone = results(to_the_end(Replica(Ranks()), [1], [short]))[1].circuits[0]
    # Alone it uses fewer examples, whose reference logits are computed in other batches.
    same(results(seen)[1].circuits[0], alone, apart=1e-5)
    assert alone.constants


def test_what_the_user_has_to_mend_is_said_before_any_trial(tmp_path):
    with pytest.raises(UserError, match="task.name 'nothing' is not"):
        Replica(Ranks()).load(settings(tmp_path, task__name="nothing").config)
    Replica(Ranks()).load(settings(tmp_path).config)


def test_eight_members_are_what_each_is_alone(tmp_path):
    sweep = settings(tmp_path, train__steps=4, train__validate_every=4)
    assignments = [assigned(sweep, number, train__seed=number, target__total=100 + 50 * number) for number in range(8)]
    seen = to_the_end(Replica(Ranks()), range(8), assignments)
    assert len(seen[0].results) == 8, "one pass for all"
    for number in (0, 7):
        alone = results(to_the_end(Replica(Ranks()), [number], [assignments[number]]))[number]
        same(results(seen)[number].circuits[0], alone.circuits[0])


def test_what_a_trial_meets_alone_is_its_own_failure(tmp_path, monkeypatch):
    sweep, replica = settings(tmp_path), Replica(Ranks())
    monkeypatch.setattr("bigcircuit.sweep.model_replica.update", raising(RuntimeError("no such luck\nat all")))
    assert replica.advance([assigned(sweep, 0)], [], [0], 1).failures == {0: "RuntimeError: no such luck"}
    monkeypatch.setattr(
        "bigcircuit.sweep.model_replica.update", raising(RuntimeError("can't allocate memory: 8 bytes"))
    )
    said = replica.advance([assigned(sweep, 1)], [], [1], 1).failures[1]
    assert said.startswith("out of memory") and "try --" in said
    with pytest.raises(OutOfMemory, match="try --"):
        replica.advance([assigned(sweep, 2), assigned(sweep, 3)], [], [2, 3], 1)
    monkeypatch.undo()
    assert replica.advance([assigned(sweep, 4)], [], [4], 1).steps == {4: 1}


def raising(error):
    def call(*_):
        raise error

    return call
