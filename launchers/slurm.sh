#!/bin/bash
# Find circuits on the hosts of a Slurm job. Submit it from the root of the repository, settings after the name:
#
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=32 launchers/slurm.sh --config my.yaml --output runs/mine
#
# One task a host starts torchrun, and torchrun starts a rank for each GPU, or RANKS_PER_HOST ranks (on CPU: 1).
# The repository, its environment and the output folder must be at the same place on all hosts.
#
# Two minutes before the time limit Slurm sends SIGTERM: the run saves its state. With REQUEUE=1 the job then queues again and
# resumes from there: sbatch --time=4:00:00 --export=ALL,REQUEUE=1 ...
#SBATCH --job-name=bigcircuit
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export FIRST_HOST=${hosts[0]}
export PORT=$((20000 + SLURM_JOB_ID % 10000))
export RANKS_PER_HOST=${RANKS_PER_HOST:-${SLURM_GPUS_ON_NODE:-1}}
# srun does not take this over from sbatch.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# In the background, because bash runs a trap only when a command in the foreground has ended.
stopped=
trap 'stopped=yes; kill -TERM "$step"' TERM
# shellcheck disable=SC2016  # the variables are those of each host
srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$RANKS_PER_HOST" \
    --master-addr "$FIRST_HOST" --master-port "$PORT" launchers/prune.py "$@"' torchrun "$@" &
step=$!
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do # a trap ends `wait` before the step ends
    code=0
    wait "$step" || code=$?
done
if [[ -n $stopped && -n ${REQUEUE:-} ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
