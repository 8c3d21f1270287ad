"""Write a circuit as a smaller model: `python launchers/export.py runs/quickstart --format uniform --output small`."""

import sys

from bigcircuit.cli import answer, run_export

if __name__ == "__main__":
    raise SystemExit(answer(run_export, sys.argv[1:]))
