"""A series of runs on one start of the ranks: `python -m tests.helpers.run_series RUNS.json`, a list of dotted settings."""

import json
import sys
from pathlib import Path

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import joined_ranks
from bigcircuit.prune import prune


def main() -> None:
    """Prune with each of the settings on all ranks."""
    with joined_ranks() as ranks:
        for overrides in json.loads(Path(sys.argv[1]).read_text()):
            prune(load(None, overrides), ranks)


if __name__ == "__main__":
    main()
