#!/usr/bin/env bash
# Ray Tune's ASHA lets a trial whose loss is NaN run to the end, and stops better ones after their first report.
#
# Guess: a trial that has diverged is worse than all others, and is the first to be stopped, with mode "min" as with "max"; the report
# of its NaN is at least refused.
# What happens (ray 2.60.0): a trial is stopped if its result is below the cut of its rung. NaN is below nothing, so no rung ever stops
# it; it counts for no cut either. Here the one diverged trial of eight gets as many iterations as the best one, and more than half of
# all those of the sweep; trials with finite losses that are worse than the first end after one.
# Consequence: report a large finite number in place of NaN, or stop such trials by the trial itself or by a Stopper: the time that ASHA
# saves goes to exactly the trials that learn nothing.
#
# Output seen:
#   ray 2.60.0
#   min: loss 0.1: 16, 0.2: 1, nan: 16, 0.3: 1, 0.4: 1, 0.5: 1, 0.6: 1, 0.7: 1
#   max: loss 0.9: 16, 0.8: 1, nan: 16, 0.7: 1, 0.6: 1, 0.5: 1, 0.4: 1, 0.3: 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "ray[tune]==2.60.0" numpy==2.4.6
cat > sweep.py <<'PYTHON'
import sys

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler


def train(config):
    for _ in range(16):
        tune.report({"loss": config["loss"]})


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
print("ray", ray.__version__)
for mode, losses in {"min": (0.1, 0.2, "nan", 0.3, 0.4, 0.5, 0.6, 0.7), "max": (0.9, 0.8, "nan", 0.7, 0.6, 0.5, 0.4, 0.3)}.items():
    results = tune.Tuner(
        train,
        param_space={"loss": tune.grid_search([float(loss) for loss in losses])},
        tune_config=tune.TuneConfig(
            metric="loss", mode=mode, max_concurrent_trials=1,
            scheduler=ASHAScheduler(max_t=16, grace_period=1, reduction_factor=2),
        ),
        run_config=tune.RunConfig(verbose=0, storage_path=sys.argv[1]),
    ).fit()
    lengths = [one.metrics["training_iteration"] for one in results]
    print(f"{mode}: loss " + ", ".join(f"{loss}: {length}" for loss, length in zip(losses, lengths, strict=True)))
    assert lengths == [16, 1, 16, 1, 1, 1, 1, 1], lengths
PYTHON
RAY_AUTH_MODE=disabled "$folder/venv/bin/python" sweep.py "$folder/results" 2> errors | grep -E "^(ray|min|max)" || { cat errors; exit 1; }
