"""Find circuits on any number of ranks: `deepspeed launchers/prune.py --config configs/quickstart.yaml`."""

import sys

from bigcircuit.cli import answer, run_prune

if __name__ == "__main__":
    raise SystemExit(answer(run_prune, sys.argv[1:]))
