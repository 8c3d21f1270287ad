"""The slots of a sweep with workers in this process, which die when the test wants it."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.results.trial_record import TrialRecord, read_trial_records
from bigcircuit.sweep.config import Sweep, SweepSettings
from bigcircuit.sweep.console import failures, line, remaining
from bigcircuit.sweep.model_replica import Replica
from tests.helpers.short_runs import QUICK

ray = pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep import scheduler_actor as slots_module  # noqa: E402 - after the question whether there is Ray
from bigcircuit.sweep.cluster import Room  # noqa: E402
from bigcircuit.sweep.scheduler_actor import SchedulerActor  # noqa: E402
from bigcircuit.sweep.search import algorithm, planned, scheduler, space  # noqa: E402
from bigcircuit.sweep.worker_group import WorkerLost  # noqa: E402


class Worker:
    """A model worker without Ray. It dies when one of `deadly` advances, or before any trial comes."""

    deadly: set[int] = set()
    stillborn = False
    seated: list[list[int]] = []

    def __init__(self, *_):
        pass

    async def start(self):
        self.host = Replica(Ranks())

    async def open(self, _):
        if self.stillborn:
            raise WorkerLost("it was never well")

    async def advance(self, entries, leaving, ready, limit):
        Worker.seated.append(list(ready))
        if self.deadly & set(ready):
            raise WorkerLost("it fell over")
        return self.host.advance(entries, leaving, ready, limit)

    def release(self):
        self.host = None


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr(slots_module, "ModelWorker", Worker)
    monkeypatch.setattr(Worker, "seated", [])
    return monkeypatch


def sweep_of(folder, base=None, **search):
    base = {
        **QUICK,
        "train.steps": 6,
        "train.validate_every": 3,
        "train.save_every": 3,
        "target.total": None,
        **(base or {}),
    }
    search = {"space": {"train.seed": [0, 1, 2]}, "search": "grid", "slots": 3, **search}
    return Sweep(load(None, {**base, "output": str(folder)}), SweepSettings(**search))


def slots_of(sweep):
    trials = planned(sweep.settings)
    return SchedulerActor(sweep, Room(1, 1, 0), trials, len(trials), [])


@asynccontextmanager
async def served(slots):
    serving = asyncio.ensure_future(slots.serve())
    try:
        yield serving
    finally:
        await slots.halt()
        await serving


async def to_the_end(slots):
    async with served(slots) as serving:
        while not serving.done() and not all(record.over for record in slots._trials.records.values()):
            await asyncio.sleep(0.05)


def test_a_trial_that_kills_its_worker_fails_alone_and_is_tried_again_by_the_next_start(tmp_path, workers):
    workers.setattr(Worker, "deadly", {1})
    sweep = sweep_of(tmp_path)
    asyncio.run(to_the_end(slots_of(sweep)))
    records = read_trial_records(tmp_path)
    assert [record.status for record in records] == ["finished", "failed", "finished"]
    assert records[1].lost and "it fell over" in records[1].error
    assert Worker.seated[0] == [0, 1, 2] and Worker.seated.count([1]) == 3
    assert all(record.updates <= 6 + 3 for record in records[::2]), "at most to the next report twice"
    workers.setattr(Worker, "deadly", set())
    asyncio.run(to_the_end(slots_of(sweep)))
    assert [record.status for record in read_trial_records(tmp_path)] == ["finished"] * 3


def test_workers_that_never_come_up_end_the_sweep_with_the_reason(tmp_path, workers):
    workers.setattr(Worker, "stillborn", True)
    with pytest.raises(
        UserError, match="no model worker comes up: 3 were lost in a row, the last by it was never well"
    ):
        asyncio.run(to_the_end(slots_of(sweep_of(tmp_path))))


@pytest.mark.usefixtures("workers")
def test_population_based_training_goes_on_with_the_settings_of_now(tmp_path):
    space_ = {"train.lr": {"log_uniform": [0.01, 0.3]}, "train.seed": [0, 1]}
    sweep = sweep_of(tmp_path, space=space_, search="random", trials=1, scheduler="pbt", slots=1)
    (drawn,) = planned(sweep.settings)
    changed = {**drawn, "train.lr": 0.2}

    async def interrupted():
        async with served(slots := slots_of(sweep)):
            number = await slots.take("first", drawn)
            assert (await slots.report(number))["step"] == 3
            await slots.keep(number, str(tmp_path / "kept"))
            await slots.take("first", changed)
            await slots.go_back(number, str(tmp_path / "kept"))

    async def resumed():
        async with served(slots := slots_of(sweep)):
            record = slots._trials.records[await slots.take("again", changed)]
            assert (record.number, record.step, record.settings, record.drawn) == (0, 3, changed, drawn)
            found = await slots.report(0)
            assert (found["step"], found["done"]) == (6, True), "nothing of the past is told"

    asyncio.run(interrupted())
    (before,) = read_trial_records(tmp_path)
    assert (before.step, before.settings) == (3, changed)
    assert draws(sweep, {0: before.settings}) == [changed]
    asyncio.run(resumed())
    assert json.loads((tmp_path / "trials/000/config.json").read_text())["config"]["train"]["lr"] == 0.2
    assert [record.updates for record in read_trial_records(tmp_path)] == [6]


@pytest.mark.usefixtures("workers")
def test_who_was_let_on_is_not_stopped_by_the_same_report_after_an_interruption(tmp_path):
    sizes = {"target.total": [60, 300, 900]}
    sweep = sweep_of(tmp_path, {"train.steps": 9}, space=sizes, scheduler="asha", metric="kl", grace=1, reduction=2)
    settings = planned(sweep.settings)

    async def reports(count):
        """The next ones of all trials."""
        async with served(slots := slots_of(sweep)):
            for number, one in enumerate(settings):
                assert await slots.take(f"trial {number}", one) == number
            rounds = [await asyncio.gather(*map(slots.report, range(3))) for _ in range(count)]
            return dict(enumerate(zip(*rounds, strict=True)))

    def stopped(seen, asha, at):
        """Who is stopped there, if they are told in this order."""
        found = {number: asha.on_trial_result(None, trials[number], seen[number][at]) for number in seen}
        return [number for number, action in found.items() if action == "STOP"]

    trials = {number: SimpleNamespace(trial_id=str(number)) for number in range(3)}
    first, again = scheduler(sweep), scheduler(sweep)
    for one in trials.values():
        first.on_trial_add(None, one)
        again.on_trial_add(None, one)
    seen = asyncio.run(reports(2))
    assert [[row["step"] for row in rows] for rows in seen.values()] == [[3, 6]] * 3
    worst_first = dict(sorted(seen.items(), key=lambda item: -item[1][0]["kl"]))
    assert stopped(worst_first, first, 0) == []
    assert [record.let_on for record in read_trial_records(tmp_path)] == [3, 3, 3]

    told = asyncio.run(reports(2))
    same = [[{**row, "decided": None} for row in rows] for rows in (*seen.values(), *told.values())]
    assert same[:3] == same[3:], "nothing was made again"
    assert [[row["decided"] for row in rows] for rows in told.values()] == [[True, False]] * 3
    best_first = dict(sorted(told.items(), key=lambda item: item[1][0]["kl"]))
    assert stopped(best_first, again, 0) == []
    best_first = dict(sorted(told.items(), key=lambda item: item[1][1]["kl"]))
    assert stopped(best_first, again, 1) == list(best_first)[1:], "nobody had decided on these"
    assert again._brackets[0]._rungs[-1][1].keys() == {"0", "1", "2"}, "and they count at their rung"


def draws(sweep, before):
    """The settings of all trials, as Tune hands them out."""
    from ray import tune
    from ray.tune.experiment import Experiment

    tune.register_trainable("trial", tune.Trainable)
    found, settings = algorithm(sweep.settings, before, 1), sweep.settings
    found.add_configurations([Experiment("x", "trial", config=space(settings), num_samples=len(planned(settings)))])
    found.max_concurrent = 0
    return [trial.config for trial in iter(found.next_trial, None)]


def test_population_based_training_of_a_grid_moves_within_its_lists_and_ranges(tmp_path):
    grid = sweep_of(tmp_path, space={"train.lr": [0.1, 0.2], "train.seed": [3, 4]}, scheduler="pbt")
    assert draws(grid, {}) == planned(grid.settings) and len(planned(grid.settings)) == 4
    from ray.tune.schedulers.pbt import _explore

    ranges = {"train.lr": {"uniform": [0.1, 0.2]}, "train.seed": [3, 4, 5]}
    pbt = scheduler(sweep_of(tmp_path, space=ranges, search="random", scheduler="pbt"))
    for _ in range(30):
        new, _ = _explore(
            {"train.lr": 0.19, "train.seed": 4}, pbt._hyperparam_mutations, 0.25, (1.2, 0.8), pbt._custom_explore_fn
        )
        assert 0.1 <= new["train.lr"] <= 0.2 and new["train.seed"] in (3, 4, 5)


def test_the_line_says_the_best_the_failed_and_the_time_of_this_start():
    def record(number, status, step, kl, neurons, updates):
        seen = {"validation.kl": kl, "validation.kept.total": neurons}
        return TrialRecord(number, {}, {}, status, None, step, 40, 1.0, updates, validation=seen)

    records = [record(0, "finished", 40, 0.0, 1792, 60), record(1, "running", 20, 0.3, 40, 35)]
    status = {"records": records, "total": 3, "seated": [[1]], "slots": 2, "rate": 2.0, "made": 10, "steps": 40}
    assert remaining(status, 5.0) == pytest.approx((120 - 60) * 5 / 10), "updates of earlier starts took other seconds"
    assert line(status, 5.0) == "1/3 trials  1 running  1/2 slots  2.0 steps/s  best 1792 neurons with KL 0  30 s left"
    records[1].validation["validation.kl"] = 0.09
    assert "best 40 neurons with KL 0.09" in line(status, 5.0)
    status["records"] = [
        TrialRecord(**{**asdict(records[1]), "validation": {**records[1].validation, "validation.kl": 2.0}})
    ]
    assert "lowest KL 2 with 40 neurons" in line(status, 5.0)
    records[0].status, records[0].error = "failed", "train.lr: a reason"
    assert failures(records) == ["trial 0 failed: train.lr: a reason"]
