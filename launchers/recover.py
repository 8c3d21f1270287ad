"""Fine-tune an exported model: `deepspeed --num_accelerators 2 launchers/recover.py small --recover.generate 400`."""

import sys

from bigcircuit.cli import answer, run_recover

if __name__ == "__main__":
    raise SystemExit(answer(run_recover, sys.argv[1:]))
