"""Evaluate circuits on any number of ranks: `deepspeed launchers/evaluate.py runs/quickstart`."""

import sys

from bigcircuit.cli import answer, run_evaluate

if __name__ == "__main__":
    raise SystemExit(answer(run_evaluate, sys.argv[1:]))
