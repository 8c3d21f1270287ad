"""Runs of large models: what is read from the output of `check`, what is measured from outside, and which rows stay."""

import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import ones
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import large_cpu
from benchmarks.large_models import SHAPES, on_meta, sibling, write_folder
from benchmarks.machine import disk_speed, layer_entries, matmul_speed, reading_seconds, update_flops
from benchmarks.printed import predicted_bytes, proposals, rows_of, tokens_at_once
from benchmarks.watch import Seen, Update, memory_kinds, watch
from bigcircuit.check import check_config
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import OutOfMemory
from bigcircuit.forward.last_columns import FEWEST
from bigcircuit.memory.estimate import Workload, training_peak
from bigcircuit.memory.fit import needs
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.runtime.host_memory import FreeMemory
from bigcircuit.train.resolve import resolve
from tests.helpers.launch import ENVIRONMENT, ROOT

SETTINGS = {**large_cpu.BASE, "train.checkpointing": False, "target.total": 100}
PROPOSED = """
it does not fit: 20.00 GiB are free
  --train.micro_batch_size 1 (21.00 GiB a rank)
  --deepspeed configs/deepspeed/zero3.json on 2 ranks (9.00 GiB a rank)
  --train.micro_batch_size 1 --train.checkpointing true --model.weights stream (3.21 GiB a rank)
1 member(s), 2 steps: the config is valid
"""
PROGRAM = """
import json, mmap, subprocess, sys, time
folder, child = sys.argv[1], len(sys.argv) > 2
if not child:
    worker = subprocess.Popen([sys.executable, __file__, folder, "child"])
    kept = b"x" * (50 << 20)
else:
    kept = b"x" * (150 << 20)
    file = open(folder + "/mapped", "rb")
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    sum(view[place] for place in range(0, len(view), 4096))
time.sleep(1.5)
if not child:
    for step in (3, 4, 5):
        with open(folder + "/metrics.jsonl", "a") as metrics:
            metrics.write(json.dumps({"step": step, "kl": 0.5}) + "\\n")
            metrics.write(json.dumps({"step": step, "validation.kl": 0.5}) + "\\n")
        time.sleep(0.6)
    print("done", worker.wait())
"""
"""Program of two processes that reports updates."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama-8b"
    list(write_folder(folder, sibling("llama-8b")))
    return folder


@pytest.fixture(scope="module")
def run(model):
    return resolve(load(None, {**SETTINGS, "model.path": str(model), "population.seeds": 4}), Ranks())


@pytest.fixture(scope="module")
def printed(run):
    """What `check` prints on a host with little memory: the run is refused, and other settings are proposed."""
    need = needs(run, Workload.of(run.data.splits, 1), FreeMemory(1, False)).on_host(1)
    text = io.StringIO()
    with pytest.raises(OutOfMemory):
        check_config(run.config, PlainConsole(file=text, width=200), memory=FreeMemory(need - 1, False))
    return text.getvalue()


def test_what_check_prints_is_read(run, printed):
    work = Workload.of(run.data.splits, 1)
    assert predicted_bytes(printed) == pytest.approx(needs(run, work, FreeMemory(1, False)).total, abs=100 << 10)
    assert tokens_at_once(printed) == 2 * (work.suffix or 0) > 0
    found = proposals(printed)
    assert {"train.checkpointing": "true"} in found and {"train.micro_batch_size": "1"} in found
    for one in found:
        run.changed(load_words(one), "the proposal is a setting")


def load_words(words):
    return {key: json.loads(value) if value in ("true", "1") else value for key, value in words.items()}


def test_proposals_for_other_numbers_of_ranks_are_left_out():
    assert proposals(PROPOSED) == [
        {"train.micro_batch_size": "1"},
        {"train.micro_batch_size": "1", "train.checkpointing": "true", "model.weights": "stream"},
    ]
    assert proposals("it fits: 20.00 GiB are free\n1 member(s), 2 steps: the config is valid") == []


def test_flops_are_those_of_an_update(run):
    checkpointed = run.changed({"train.checkpointing": True}, "test")
    work = Workload.of(run.data.splits, 1)
    with FlopCounterMode(display=False) as counted:
        training_peak(checkpointed, work)
    products = counted.get_total_flops()
    entries = sum(p.numel() for name, p in on_meta(sibling("llama-8b")).named_parameters() if ".layers." in name)
    # Two pairs of four members have eight rows, and a product has sixteen at least; there and back.
    head = 2 * 2 * FEWEST * checkpointed.model.skeleton.head.weight.numel()
    recorded = 2 * entries * 2 * work.tokens
    # Attention is in the count, and the first layer needs no gradient of its input.
    assert update_flops(entries, 2 * (work.suffix or 0), 4) == pytest.approx(products - head - recorded, rel=0.08)


def test_entries_of_the_layers_are_counted_in_the_files(model):
    shape = SHAPES["llama-8b"]
    layer = 2 * shape.hidden**2 + 2 * shape.hidden * shape.kv_heads * shape.head_dim + 3 * shape.hidden * shape.ffn
    assert layer_entries(model) == 4 * (layer // 32**2 + 2 * shape.hidden // 32)


def test_memory_is_told_by_kind():
    lines = "Name:\tpython\nVmRSS:\t 9 kB\nRssAnon:\t     300 kB\nRssFile:\t      20 kB\nRssShmem:\t 0 kB\n"
    assert memory_kinds(lines) == (300 << 10, 20 << 10)
    assert memory_kinds("Name:\tpython\nState:\tZ (zombie)\n") == (0, 0)


@pytest.fixture
def program(tmp_path):
    """Command and metrics.jsonl of a run that goes on from update 2."""
    (tmp_path / "mapped").write_bytes(b"\1" * (100 << 20))
    (tmp_path / "program.py").write_text(PROGRAM)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 2, "kl": 0.5}\n')
    return [sys.executable, str(tmp_path / "program.py"), str(tmp_path)], metrics


def test_the_largest_process_counts_and_updates_are_timed(program):
    seen = watch(*program, root=ROOT)
    assert (seen.exit_code, seen.output.strip()) == (0, "done 0")
    assert 150 << 20 < seen.anonymous < 190 << 20
    assert 100 << 20 < seen.mapped < 140 << 20
    assert list(seen.updates) == [3, 4, 5]
    assert large_cpu.seconds_an_update(seen) == pytest.approx(0.6, abs=0.2)
    assert 2.5 < seen.seconds < 10


def test_all_processes_are_killed_after_an_update(program):
    command, metrics = program
    seen = watch(command, metrics, root=ROOT, environment=ENVIRONMENT, kill_after=4)
    assert seen.exit_code == -signal.SIGKILL and list(seen.updates) == [3, 4]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    assert not any(command[1].encode() in words for words in commands)


def test_the_first_update_is_left_out_of_the_mean():
    seen = Seen(
        exit_code=0, seconds=60, anonymous=1, mapped=1, output="",
        updates={1: Update(30.0, 10**9), 2: Update(34.0, 4 * 10**9), 3: Update(40.0, 9 * 10**9)},
    )  # fmt: skip
    assert large_cpu.seconds_an_update(seen) == 5
    assert large_cpu.bytes_an_update(seen) == 4 * 10**9


def test_one_changed_bit_of_a_gate_changes_the_digest(tmp_path):
    def digest(gate, moment):
        folder = tmp_path / "checkpoints/step-000002"
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"0.log_alpha.head": gate, "0.moment.head": moment}, folder / "state.safetensors")
        return large_cpu.gates_digest(tmp_path, 2)

    gate = ones(8)
    assert digest(gate, ones(8)) == digest(gate, 2 * ones(8))
    assert digest(gate, ones(8)) != digest(gate.index_fill(0, ones(1).long(), 1 + 2**-23), ones(8))


def test_rows_that_are_not_measured_stay(tmp_path, model, monkeypatch, capsys):
    rows = {
        "resident": "| resident | 2026-01-01 | 1 | 13 | 0.2 | 398 | 349 | 1.14 | 151 | `6e8a820583a7` |",
        "start": "| start | 2026-01-01 | 16.1 | 2.0 | 8.05 | 19.0 |",
    }
    text = large_cpu.page("head", rows)
    assert rows_of(text, large_cpu.NAMES) == rows
    (tmp_path / "table.md").write_text(text)
    measured = {"stream": lambda bench: [bench.models[0].name], "start": failing}
    monkeypatch.setattr(large_cpu, "BLOCKS", [block._replace(rows=block.rows | measured) for block in large_cpu.BLOCKS[:1]]
                        + [block._replace(rows={n: measured.get(n, m) for n, m in block.rows.items()})
                           for block in large_cpu.BLOCKS[1:]])  # fmt: skip
    words = [str(model), "--only", "stream", "start", "--output", str(tmp_path / "table.md")]
    assert large_cpu.main(words) == 1
    now = rows_of((tmp_path / "table.md").read_text(), large_cpu.NAMES)
    assert now["resident"] == rows["resident"] and now["start"] == rows["start"]
    assert now["stream"].endswith(f"| {model.name} |")
    assert "start: out of memory" in capsys.readouterr().err


def failing(_):
    raise large_cpu.Failed("out of memory")


def test_speeds_are_of_what_is_read_and_multiplied(model):
    files = sorted(model.glob("*.safetensors"))
    assert reading_seconds(files)[1] == sum(path.stat().st_size for path in files)
    assert reading_seconds(files, limit=1)[1] == files[0].stat().st_size
    assert 1e6 < disk_speed(files) < 1e12
    assert 1e7 < matmul_speed(8, 64, 64, threads=1, seconds=0.1) < 1e13
