"""A worker's ranks: results, errors and losses; and weights that the workers of a node read from its disk only once."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from bigcircuit.errors import UserError

ray = pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep.cluster import WorkerResources  # noqa: E402 - after the question whether there is Ray
from bigcircuit.sweep.worker_group import WorkerGroup, WorkerLost  # noqa: E402

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
from pathlib import Path

from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.load import load_frozen

def read():
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["read_bytes"])

model = ModelConfig(path=sys.argv[1])
load_frozen(ModelConfig(path="embedded"))  # what the program itself reads of its libraries
input()
before = read()
fingerprint(model)
load_frozen(model)
print(read() - before)
"""


def forget(path):
    """Drop a file from the memory that caches the disk."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's count of bytes read from disk")
def test_weights_are_read_from_disk_once_a_node(tmp_path):
    config = LlamaConfig(vocab_size=1024, hidden_size=512, intermediate_size=2048, num_hidden_layers=3)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    forget(weights)
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    read = sum(int(worker.communicate()[0]) for worker in workers)
    if read == 0:
        pytest.skip("this folder is in memory or its disk's cache cannot be emptied")
    # A busy machine may drop a part of what was read, or of the libraries, from memory again; twice would be 2.0.
    assert 0.95 < read / weights.stat().st_size < 1.5


def after(seconds, error):
    """A call that raises after a while."""

    async def call():
        await asyncio.sleep(seconds)
        raise error

    return call()


def raised_by_rank(error):
    """An error as Ray passes it on from a rank."""
    return ray.exceptions.RayTaskError("advance", "Traceback ...", error).as_instanceof_cause()


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr("bigcircuit.sweep.worker_group._DEATH_NOTICE_SECONDS", 0.5)


def gathered(*calls):
    group = WorkerGroup(len(calls), WorkerResources(workers=1, cpus=1, gpus=0))
    return asyncio.run(group._gather(calls))


def test_the_results_of_all_ranks_come_in_their_order():
    async def result(value, seconds):
        await asyncio.sleep(seconds)
        return value

    assert gathered(result("first", 0.05), result("second", 0)) == ["first", "second"]


def test_what_a_rank_raises_for_the_user_is_raised_as_it_was():
    with pytest.raises(UserError, match="^model.path: no such folder$") as caught:
        gathered(after(0, raised_by_rank(UserError("model.path: no such folder"))), after(60, ValueError()))
    assert type(caught.value) is UserError, "without Ray's traceback in its message"


def test_another_error_of_a_rank_is_a_loss_with_its_reason():
    with pytest.raises(WorkerLost, match="^RuntimeError: no such luck$"):
        gathered(after(0, raised_by_rank(RuntimeError("no such luck"))), after(60, ValueError()))


def test_the_death_of_a_rank_explains_the_errors_of_the_others():
    silent = raised_by_rank(UserError("a rank is silent"))
    with pytest.raises(WorkerLost, match="^The actor died unexpectedly before finishing this task$"):
        gathered(after(0, silent), after(0.1, ray.exceptions.ActorDiedError()))
