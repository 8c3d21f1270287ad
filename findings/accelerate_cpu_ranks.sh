#!/usr/bin/env bash
# On a host without GPUs two processes of torchrun are two trainings of one process each to accelerate, and its own launcher starts one.
#
# Guess: Accelerator() joins the processes that torchrun starts (RANK and WORLD_SIZE are set, it says so in its documentation), over
# gloo where there is no GPU; and `accelerate launch --cpu --num_processes 2` starts two.
# What happens (accelerate 1.15.0, torch 2.13.0+cpu): without a GPU Accelerator() is "DistributedType.NO", rank 0 of 1, in both processes,
# although it has set up a process group: each goes through all of the data, averages no gradient, is the main process and writes every
# file. Only Accelerator(cpu=True) joins them. `accelerate launch --cpu --num_processes 2`, and a config file with distributed_type
# MULTI_CPU and num_processes 2, start a single process without a warning about it: only mpirun starts more.
# Consequence: tests of several ranks on CPU that use accelerate test nothing of several ranks; compare num_processes with WORLD_SIZE.
#
# Output seen: rank and size that accelerate says, samples that this process goes through (of 16)
#   accelerate 1.15.0
#   torchrun, 2 processes: 0 of 1, 16 samples; 0 of 1, 16 samples
#   torchrun, 2 processes, cpu=True: 0 of 2, 8 samples; 1 of 2, 8 samples
#   accelerate launch --cpu --num_processes 2: 0 of 1, 16 samples
#   accelerate launch, MULTI_CPU with 2 processes: 0 of 1, 16 samples
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
cat > ranks.py <<'PYTHON'
import os
import sys

import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True) if "cpu" in sys.argv else Accelerator()
model = torch.nn.Linear(4, 1)
loader = torch.utils.data.DataLoader(torch.ones(16, 4), batch_size=2)
model, loader = accelerator.prepare(model, loader)
samples = sum(len(batch) for batch in loader)
line = f"{accelerator.process_index} of {accelerator.num_processes}, {samples} samples"
with open(f"seen-{os.environ.get('RANK', '0')}", "w") as file:
    file.write(line)
PYTHON
cat > two.yaml <<'YAML'
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
num_machines: 1
num_processes: 2
mixed_precision: 'no'
YAML
export PATH="$folder/venv/bin:$PATH" CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
run() {
    rm -f seen-*
    "${@:2}" > log 2>&1 || { cat log; exit 1; }
    echo "$1: $(for file in seen-*; do cat "$file"; echo; done | paste -sd ';' | sed 's/;/; /g')"
}
{
    python -c "import accelerate; print('accelerate', accelerate.__version__)"
    run "torchrun, 2 processes" torchrun --nproc-per-node 2 ranks.py
    run "torchrun, 2 processes, cpu=True" torchrun --nproc-per-node 2 ranks.py cpu
    run "accelerate launch --cpu --num_processes 2" accelerate launch --cpu --num_processes 2 ranks.py
    run "accelerate launch, MULTI_CPU with 2 processes" accelerate launch --config_file two.yaml ranks.py
} > output
cat output
diff output - <<'SEEN'
accelerate 1.15.0
torchrun, 2 processes: 0 of 1, 16 samples; 0 of 1, 16 samples
torchrun, 2 processes, cpu=True: 0 of 2, 8 samples; 1 of 2, 8 samples
accelerate launch --cpu --num_processes 2: 0 of 1, 16 samples
accelerate launch, MULTI_CPU with 2 processes: 0 of 1, 16 samples
SEEN
