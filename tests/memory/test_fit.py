"""Whether a run fits into memory, what would make it fit, and what is said when memory runs out."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bigcircuit.check import check_config
from bigcircuit.cli import answer, run_check
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import OutOfMemory, UserError
from bigcircuit.memory import estimate, fit
from bigcircuit.memory.estimate import Estimate, Workload
from bigcircuit.memory.fit import needs, remedies
from bigcircuit.runtime import host_memory
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.runtime.host_memory import GIB, FreeMemory
from bigcircuit.train.resolve import resolve
from tests.helpers.resolved_runs import without_pairs
from tests.helpers.short_runs import QUICK, run

ROOT = Path(__file__).parents[2]


WORK = Workload(tokens=32, answer=1, rows=1, trained=50, validated=50)


def test_remedies_fit_and_come_gentlest_first():
    large = without_pairs({"target.total": 200, "train.batch_size": 32, "train.micro_batch_size": 32})
    memory = FreeMemory(int(0.35 * needs(large, WORK, FreeMemory(0, True)).total), is_gpu=True)
    found = list(remedies(large, WORK, memory))
    assert found[0].startswith("--train.micro_batch_size 8 (")
    assert any("--train.checkpointing true" in one for one in found)
    for one in found:
        assert float(one.rsplit("(", 1)[1].split(" GiB")[0]) * GIB <= memory.free + 0.01 * GIB


def test_settings_whose_weights_alone_do_not_fit_are_not_counted(monkeypatch):
    """What would be found is found all the same."""
    settings = {"target.total": 200, "train.micro_batch_size": 8}
    whole, memory = without_pairs(settings), FreeMemory(5 << 20, is_gpu=True)
    found, counted, count = list(remedies(whole, WORK, memory)), [], estimate.training_peak
    monkeypatch.setattr(estimate, "training_peak", lambda run, work: counted.append(run) or count(run, work))
    assert list(remedies(whole, WORK, memory)) == found and counted
    monkeypatch.setattr(fit, "resting", lambda *_: Estimate({}))
    assert list(remedies(whole, WORK, memory)) == found
    monkeypatch.undo()
    monkeypatch.setattr(estimate, "training_peak", lambda *_: pytest.fail("counted"))
    assert list(remedies(whole, WORK, FreeMemory(1000, is_gpu=True))) == []


def test_what_is_known_of_other_settings_is_what_would_be_counted():
    """In a search for settings that fit, the same pairs at once, dtype and checkpointing are counted once."""
    base, known = {"target.total": 200, "train.micro_batch_size": 8}, {}
    memory = FreeMemory(0, True)
    for change, ranks in [({}, 1), ({}, 4), ({"train.micro_batch_size": 4}, 1), ({"train.checkpointing": True}, 1)]:
        changed, work = without_pairs({**base, **change}), WORK._replace(ranks=ranks)
        assert needs(changed, work, memory, known) == needs(changed, work, memory)
    counted = sorted(known, key=str)
    assert counted == [
        (4, "float32", False),
        (4, "float32", None),
        (8, "float32", False),
        (8, "float32", None),
        (8, "float32", True),
    ]


def test_check_says_whether_it_fits_and_what_would(capsys):
    config = load(None, {**QUICK, "population.seeds": 4})
    console = PlainConsole(width=150)
    check_config(config, console, 1, FreeMemory(GIB, is_gpu=True))
    assert "it fits: 1.00 GiB are free" in capsys.readouterr().out
    with pytest.raises(
        OutOfMemory, match="the config is valid, but the run does not fit: add one of the settings above"
    ):
        check_config(config, console, 1, FreeMemory(GIB // 125, is_gpu=True))
    said = capsys.readouterr().out
    assert "it does not fit: 0.01 GiB are free" in said
    assert "--train.micro_batch_size" in said and "GiB a rank)" in said
    with pytest.raises(OutOfMemory, match="use fewer members, shorter prompts or a larger machine"):
        check_config(config, console, 1, FreeMemory(1, is_gpu=True))
    said = capsys.readouterr().out
    assert "no other settings fit" in said and said.count("the config is valid") == 0


def test_check_speaks_of_the_machine_asked_about(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["--train.steps", "5", "--task.size", "80", "--target.total", "200", "--ranks", "2"]
    run_check([*words, "--device", "cuda", "--memory", "80", "--time"])
    said = capsys.readouterr().out
    assert "2 ranks on GPUs of 80 GiB each" in said and "Python and libraries" not in said
    assert said.count("--time: time can be measured only on the machine itself; this one has no GPU\n") == 1
    run_check([*words, "--memory", "24"])
    said = capsys.readouterr().out
    assert "2 ranks on one CPU host with 24 GiB" in said and "Python and libraries" in said
    with pytest.raises(
        UserError, match="--device cuda: this machine has no GPU; say with --memory how many GiB a GPU has free"
    ):
        run_check(["--device", "cuda"])


def test_check_exits_with_4_where_a_run_does_not_fit_and_with_0_where_it_does(capsys):
    words = ["--train.steps", "5", "--task.size", "80", "--target.total", "200", "--device", "cuda", "--memory"]
    assert answer(run_check, [*words, "0.004"]) == 4
    said = capsys.readouterr()
    assert "it does not fit" in said.out and "the config is valid" not in said.out
    assert (
        said.err.startswith("bigcircuit: the config is valid, but the run does not fit") and said.err.count("\n") == 1
    )
    assert answer(run_check, [*words, "80"]) == 0
    assert "the config is valid" in capsys.readouterr().out


def test_gathered_weights_need_buffers_on_cpu_alone():
    sharded = without_pairs({"deepspeed": str(ROOT / "configs/deepspeed/zero3.json")})
    sizes = {gpu: needs(sharded, WORK, FreeMemory(GIB, gpu)).allocated["gathered weights"] for gpu in (True, False)}
    largest = max(sum(p.numel() for p in layer.module.parameters()) for layer in sharded.model.skeleton.layers)
    assert sizes[False] - sizes[True] == 2 * 4 * largest


def test_a_run_that_cannot_fit_is_refused_before_weights_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory.FreeMemory, "measure", classmethod(lambda cls, _: cls(GIB // 4, False)))
    with pytest.raises(
        OutOfMemory,
        match=r"the run needs about \d\.\d+ GiB .*Python and libraries .* a rank and 0\.25 GiB are free; try fewer members",
    ):
        run(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_freed_memory_is_kept_where_there_is_room_and_handed_back_where_there_is_not(tmp_path, monkeypatch):
    config = load(None, {**QUICK, "output": str(tmp_path / "x")})
    whole, called = resolve(config, Ranks()), []
    monkeypatch.setattr(fit, "return_freed_memory", lambda: called.append(True))
    work, kept = Workload.of(whole.data.splits, 1), "freed memory that is kept"
    roomy = needs(whole, work, FreeMemory(64 * GIB, False))
    least = needs(whole, work, FreeMemory(roomy.on_host(1), False))
    allocated = {name: size for name, size in roomy.allocated.items() if name != kept}
    assert kept not in least.allocated and allocated == least.allocated
    saving = whole.changed({"train.checkpointing": True}, "saving")
    assert kept not in needs(saving, work, FreeMemory(64 * GIB, False)).allocated
    assert kept not in needs(whole, work._replace(ranks=2), FreeMemory(roomy.on_host(2), False)).allocated
    for free, handed_back in ((64 * GIB, []), (roomy.on_host(1), [True])):
        monkeypatch.setattr(host_memory.FreeMemory, "measure", classmethod(lambda cls, _, free=free: cls(free, False)))
        fit.check_fits(whole, Ranks())
        assert called == handed_back


def test_memory_that_runs_out_in_the_middle_is_one_line_with_the_estimate_and_three_remedies(tmp_path):
    """A limit on the address space makes the allocator fail, as a GPU's does; the refusal before the run is switched off."""
    script = (
        "import sys; from bigcircuit import cli, prune; from bigcircuit.memory import fit\n"
        "prune.check_fits = lambda *_: fit._libraries(False)\n"
        "sys.exit(cli.answer(cli.run_prune, sys.argv[1:]))"
    )
    settings = {**QUICK, "population.seeds": 8, "train.batch_size": 800, "train.micro_batch_size": 800}
    words = [f"--{key}={value}" for key, value in {**settings, "output": tmp_path / "x"}.items()]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (5 * GIB // 2, 5 * GIB // 2)),
    )  # fmt: skip
    assert done.returncode == OutOfMemory.exit_code == 4, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.match(
        r"bigcircuit: out of memory on rank 0 while allocating \d\.\d\d GiB in \w+/\w+\.py: the run needs about ",
        done.stderr,
    )
    assert done.stderr.count("GiB a rank)") == 3


def test_other_runtime_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shapes"), fit.explain_out_of_memory(without_pairs(), Ranks()):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
