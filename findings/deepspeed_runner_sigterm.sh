#!/usr/bin/env bash
# SIGTERM to the process of `deepspeed SCRIPT` ends that process alone; the ranks it started run on without it.
#
# Guess: the launcher hands SIGTERM on to its ranks, as torchrun does, so `kill PID` of the command stops the job.
# What happens (deepspeed 0.19.8): on one host deepspeed/launcher/runner.py installs no signal handler (only for pdsh on several
# hosts). It dies by SIGTERM; deepspeed.launcher.launch, which would hand the signal on, and the ranks are left to init and work on.
# Consequence: stop such a job by the process group (`kill -TERM -- -PGID`, what Ctrl-C and batch systems do) or by the process of
# deepspeed.launcher.launch. A second start meets the first one, which still writes.
#
# Output seen:
#   deepspeed 0.19.8
#   runner ended by SIGTERM: True; rank alive 3 s later: True; ended by SIGTERM to launch: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 deepspeed==0.19.8 numpy==2.4.6 setuptools 2>/dev/null
cat > rank.py <<'PYTHON'
import os
import time
from pathlib import Path

Path("pids").write_text(f"{os.getpid()} {os.getppid()}")
time.sleep(60)
PYTHON
PATH="$folder/venv/bin:$PATH" DS_ACCELERATOR=cpu "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import os
import signal
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

print("deepspeed", version("deepspeed"))
runner = subprocess.Popen(["deepspeed", "--num_accelerators", "1", "rank.py"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
pids = Path("pids")
while not (pids.exists() and pids.read_text()):
    assert runner.poll() is None
    time.sleep(0.2)
rank, launch = map(int, pids.read_text().split())
runner.send_signal(signal.SIGTERM)
ended = runner.wait(30) == -signal.SIGTERM
time.sleep(3)


def alive(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


survived = alive(rank)
os.kill(launch, signal.SIGTERM)
for _ in range(300):
    if not alive(rank):
        break
    time.sleep(0.1)
print(f"runner ended by SIGTERM: {ended}; rank alive 3 s later: {survived}; ended by SIGTERM to launch: {not alive(rank)}")
assert ended and survived and not alive(rank)
PYTHON
