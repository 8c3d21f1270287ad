"""Two model workers of a node read the weights from its disk once between them: what one has read the other finds in memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

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
    assert read == pytest.approx(weights.stat().st_size, rel=0.05)
