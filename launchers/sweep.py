"""Search settings with Ray Tune: `python launchers/sweep.py --config configs/sweeps/penalties.yaml --output runs/s`."""

import sys

from bigcircuit.cli import answer, run_sweep

if __name__ == "__main__":
    raise SystemExit(answer(run_sweep, sys.argv[1:]))
