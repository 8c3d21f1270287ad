#!/usr/bin/env bash
# Population-based training of Ray Tune leaves the range that a setting was given, and never moves a small integer.
#
# Guess: hyperparam_mutations={"dropout": tune.uniform(0, 0.9), "layers": tune.randint(1, 9)} is the space: whatever is perturbed
# stays in it, as values of a list do, and an integer goes at least one up or down.
# What happens (ray 2.60.0): a perturbation multiplies by 1.2 or 0.8 and looks at no bound, so a dropout of .8 passes .9 at the first
# 1.2, and soon 1, as long as larger is better. An integer is multiplied and rounded: 1 and 2 stay what they are for ever (2 * 1.2 and
# 2 * 0.8 both round to 2). The domain is used only where a value is drawn anew, a quarter of the time by default; here never.
# Consequence: bound settings in custom_explore_fn; search small integers and bounded numbers as lists, or with PB2, which has bounds.
#
# Output seen:
#   ray 2.60.0
#   dropout: above .9 True; layers seen: [2]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "ray[tune]==2.60.0" numpy==2.4.6
cat > population.py <<'PYTHON'
import json
import sys
import tempfile
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining


def train(config):
    checkpoint, done = tune.get_checkpoint(), 0
    if checkpoint:
        done = json.loads(Path(checkpoint.path, "done").read_text())
    for step in range(done, 10):
        with tempfile.TemporaryDirectory() as name:
            Path(name, "done").write_text(json.dumps(step + 1))
            tune.report({"score": config["dropout"], **config}, checkpoint=tune.Checkpoint.from_directory(name))


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print("ray", ray.__version__)
results = tune.Tuner(
    train,
    param_space={"dropout": tune.grid_search([0.5, 0.6, 0.7, 0.8]), "layers": 2},
    tune_config=tune.TuneConfig(metric="score", mode="max", scheduler=PopulationBasedTraining(
        time_attr="training_iteration", perturbation_interval=1, resample_probability=0.0, synch=True,
        hyperparam_mutations={"dropout": tune.uniform(0, 0.9), "layers": tune.randint(1, 9)},
    )),
    run_config=tune.RunConfig(verbose=0, storage_path=sys.argv[1]),
).fit()
rows = [row for one in results for _, row in one.metrics_dataframe.iterrows()]
top, layers = max(row["dropout"] for row in rows), sorted({int(row["layers"]) for row in rows})
print(f"dropout: above .9 {top > 0.9}; layers seen: {layers}")
assert top > 0.9 and layers == [2], (top, layers)
PYTHON
RAY_AUTH_MODE=disabled "$folder/venv/bin/python" population.py "$folder/results" 2> errors | grep -E "^(ray|dropout:)" || { cat errors; exit 1; }
