"""Programs on several ranks: the words of each launcher, free ports, and a start that waits for the end."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEEPSPEED_CONFIGS = ROOT / "configs/deepspeed"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ON_CPU = {**ENVIRONMENT, "DS_ACCELERATOR": "cpu"}


def free_port() -> int:
    """Find a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launcher_command(name: str, ranks: int = 2) -> list[str]:
    """Return the words that start a program of Python, whose own words follow, on this many ranks.

    name: "torchrun", "deepspeed" or "none", which starts one process.
    """
    port = str(free_port())
    if name == "deepspeed":
        program = shutil.which("deepspeed", path=str(Path(sys.executable).parent))
        return [str(program), "--num_accelerators", str(ranks), "--master_port", port]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", port]
    return [sys.executable, *(torchrun if name == "torchrun" else [])]


def launch(ranks: int, *words: str, timeout: float = 300) -> str:
    """Run a program on ranks of torchrun to its end and return its output; fails with it if its exit code is not 0.

    words: a file, or -m and a module, and its arguments. timeout: seconds.
    """
    command = [*launcher_command("torchrun", ranks), *words]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def option_words(values: Mapping[str, Any]) -> list[str]:
    """Command-line words of dotted settings: text as it is, everything else as JSON."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
