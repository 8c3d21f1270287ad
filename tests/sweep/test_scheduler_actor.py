"""The scheduler actor with workers in this process, which are lost when the test wants it."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from bigcircuit.errors import UserError
from bigcircuit.io.files import write_json
from bigcircuit.results.trial_record import read_trial_records

pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep.resume import sweep_json
from bigcircuit.sweep.search import planned_settings, trial_scheduler
from tests.helpers.sweep_actor import InProcessWorker, actor_of, run_to_the_end, serving, short_sweep


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr("bigcircuit.sweep.scheduler_actor.WorkerGroup", InProcessWorker)
    monkeypatch.setattr(InProcessWorker, "calls", [])
    return monkeypatch


def test_a_trial_that_kills_its_worker_fails_alone_and_is_retried_by_the_next_start(tmp_path, workers):
    workers.setattr(InProcessWorker, "deadly", {1})
    sweep = short_sweep(tmp_path)
    asyncio.run(run_to_the_end(actor_of(sweep)))
    records = read_trial_records(tmp_path)
    assert [record.status for record in records] == ["finished", "failed", "finished"]
    assert records[1].retry_on_resume and "it fell over" in records[1].error
    assert InProcessWorker.calls[0] == [0, 1, 2] and InProcessWorker.calls.count([1]) == 3
    assert all(record.updates <= 6 + 3 for record in records[::2]), "at most to the next report twice"
    workers.setattr(InProcessWorker, "deadly", set())
    asyncio.run(run_to_the_end(actor_of(sweep)))
    assert [record.status for record in read_trial_records(tmp_path)] == ["finished"] * 3


def test_workers_that_never_come_up_end_the_sweep_with_the_reason(tmp_path, workers):
    workers.setattr(InProcessWorker, "stillborn", True)
    with pytest.raises(
        UserError, match="no model worker comes up: 3 were lost in a row, the last by it was never well"
    ):
        asyncio.run(run_to_the_end(actor_of(short_sweep(tmp_path))))


@pytest.mark.usefixtures("workers")
def test_the_phase_of_a_worker_is_in_the_status_while_its_lines_come(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("bigcircuit.sweep.scheduler_actor.time.monotonic", lambda: now[0])

    async def seen():
        actor, found = actor_of(short_sweep(tmp_path)), []
        await actor.show_phase(1, "loading weights: 10 s so far")
        await actor.show_phase(0, "loading weights: 10 s so far")
        found.append((await actor.status()).phases)
        now[0] += 15
        await actor.show_phase(1, "reference logits: 12/96 passes, 41 s left")
        now[0] += 15
        found.append((await actor.status()).phases)
        return found

    assert asyncio.run(seen()) == [
        {0: "loading weights: 10 s so far", 1: "loading weights: 10 s so far"},
        {1: "reference logits: 12/96 passes, 41 s left"},
    ]


@pytest.mark.usefixtures("workers")
def test_the_outputs_are_written_when_it_is_shut_down(tmp_path):
    sweep = short_sweep(tmp_path, space={"train.seed": [0]})
    write_json(tmp_path / "sweep.json", sweep_json(sweep))
    actor = actor_of(sweep)
    asyncio.run(run_to_the_end(actor))
    for name in ("trials.csv", "front.csv", "report.html"):
        assert (tmp_path / name).stat().st_size, name
    assert asyncio.run(actor.shut_down()), "the driver need not write them again"


@pytest.mark.usefixtures("workers")
def test_status_counts_slots_updates_and_trials_to_come(tmp_path):
    async def states():
        actor = actor_of(short_sweep(tmp_path))
        before = await actor.status()
        await run_to_the_end(actor)
        return before, await actor.status()

    before, after = asyncio.run(states())
    assert (before.total, before.slots, before.updates, before.rate, before.steps) == (3, 3, 0, 0.0, 6)
    assert (after.updates, after.loss_reasons) == (18, []) and after.rate > 0
    assert [record.status for record in after.records] == ["finished"] * 3


@pytest.mark.usefixtures("workers")
def test_population_based_training_goes_on_with_the_settings_of_now(tmp_path):
    space = {"train.lr": {"log_uniform": [0.01, 0.3]}, "train.seed": [0, 1]}
    sweep = short_sweep(tmp_path, space=space, search="random", trials=1, scheduler="pbt", slots=1)
    (drawn,) = planned_settings(sweep.settings)
    changed = {**drawn, "train.lr": 0.2}

    async def interrupted():
        async with serving(actor := actor_of(sweep)):
            number = await actor.register("first", drawn)
            assert (await actor.next_report(number))["step"] == 3
            await actor.save_checkpoint(number, str(tmp_path / "kept"))
            await actor.register("first", changed)
            await actor.load_checkpoint(number, str(tmp_path / "kept"))

    async def resumed():
        async with serving(actor := actor_of(sweep)):
            record = actor._trials.records[await actor.register("again", changed)]
            assert (record.number, record.step, record.settings, record.drawn) == (0, 3, changed, drawn)
            report = await actor.next_report(0)
            assert (report["step"], report["done"]) == (6, True), "no report of the past is replayed"

    asyncio.run(interrupted())
    (before,) = read_trial_records(tmp_path)
    assert (before.step, before.settings) == (3, changed)
    asyncio.run(resumed())
    assert json.loads((tmp_path / "trials/000/config.json").read_text())["config"]["train"]["lr"] == 0.2
    assert [record.updates for record in read_trial_records(tmp_path)] == [6]


@pytest.mark.usefixtures("workers")
def test_a_trial_that_was_continued_is_not_stopped_by_the_same_report_after_an_interruption(tmp_path):
    sizes = {"target.total": [60, 300, 900]}
    sweep = short_sweep(tmp_path, {"train.steps": 9}, space=sizes, scheduler="asha", metric="kl", grace=1, reduction=2)
    settings = planned_settings(sweep.settings)

    async def reports(count):
        """The next ones of all trials."""
        async with serving(actor := actor_of(sweep)):
            for number, one in enumerate(settings):
                assert await actor.register(f"trial {number}", one) == number
            rounds = [await asyncio.gather(*map(actor.next_report, range(3))) for _ in range(count)]
            return dict(enumerate(zip(*rounds, strict=True)))

    def stopped(seen, asha, at):
        """Which trials are stopped there, if they report in this order."""
        found = {number: asha.on_trial_result(None, trials[number], seen[number][at]) for number in seen}
        return [number for number, action in found.items() if action == "STOP"]

    trials = {number: SimpleNamespace(trial_id=str(number)) for number in range(3)}
    first, again = trial_scheduler(sweep), trial_scheduler(sweep)
    for one in trials.values():
        first.on_trial_add(None, one)
        again.on_trial_add(None, one)
    seen = asyncio.run(reports(2))
    assert [[row["step"] for row in rows] for rows in seen.values()] == [[3, 6]] * 3
    worst_first = dict(sorted(seen.items(), key=lambda item: -item[1][0]["kl"]))
    assert stopped(worst_first, first, 0) == []
    assert [record.decided_step for record in read_trial_records(tmp_path)] == [3, 3, 3]

    replayed = asyncio.run(reports(2))
    same = [[{**row, "decided": None} for row in rows] for rows in (*seen.values(), *replayed.values())]
    assert same[:3] == same[3:], "nothing was computed again"
    assert [[row["decided"] for row in rows] for rows in replayed.values()] == [[True, False]] * 3
    best_first = dict(sorted(replayed.items(), key=lambda item: item[1][0]["kl"]))
    assert stopped(best_first, again, 0) == []
    best_first = dict(sorted(replayed.items(), key=lambda item: item[1][1]["kl"]))
    assert stopped(best_first, again, 1) == list(best_first)[1:], "the scheduler had not decided on these"
    assert again._brackets[0]._rungs[-1][1].keys() == {"0", "1", "2"}, "and they count at their rung"
