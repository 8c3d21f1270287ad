"""All baselines on the ranks of a launcher, with weights in pieces; the first rank writes scores.safetensors.

python -m torch.distributed.run --nproc-per-node 2 -m tests.sharded_baselines MODEL_FOLDER DEEPSPEED_JSON
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

from bigcircuit.ablated import INTERCHANGE
from bigcircuit.config_file import load
from bigcircuit.distributed import joined
from bigcircuit.evaluation.baselines import BASELINES
from bigcircuit.frozen.load import load_frozen
from bigcircuit.sharding import read_settings
from bigcircuit.streams import Streams
from bigcircuit.tasks.passes import Passes
from tests.test_architectures import examples


def main() -> None:
    """Score and write."""
    folder = Path(sys.argv[1])
    config = load(None, {"model.path": str(folder), "deepspeed": sys.argv[2]})
    with joined() as ranks:
        frozen = load_frozen(config.model, ranks.device, read_settings(config.deepspeed))
        with Streams(frozen, INTERCHANGE) as streams:
            # Three pairs one by one: with two ranks one of them makes a pass that does not count.
            scores = {name: baseline(streams, examples(3), Passes(1, ranks)) for name, baseline in BASELINES.items()}
        if ranks.first:
            flat = {f"{name}.{node}": values for name, all_ in scores.items() for node, values in all_.items()}
            save_file(flat, folder / "scores.safetensors")


if __name__ == "__main__":
    main()
