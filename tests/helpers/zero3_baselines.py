"""All baselines on the ranks of a launcher, under ZeRO-3; the first rank writes scores.safetensors.

python -m torch.distributed.run --nproc-per-node 2 -m tests.helpers.zero3_baselines MODEL_FOLDER DEEPSPEED_JSON
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.config.load import load
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import joined_ranks
from bigcircuit.forward.streams import Streams
from bigcircuit.model.deepspeed_config import read_deepspeed
from bigcircuit.model.load import load_frozen
from tests.helpers.tiny_models import tiny_examples


def main() -> None:
    """Score nodes by every baseline and write the scores."""
    folder = Path(sys.argv[1])
    config = load(None, {"model.path": str(folder), "deepspeed": sys.argv[2]})
    with joined_ranks() as ranks:
        frozen = load_frozen(config.model, ranks.device, read_deepspeed(config.deepspeed))
        with Streams(frozen, INTERCHANGE) as streams:
            # Three pairs one by one: with two ranks one of them makes a pass that does not count.
            scores = {
                name: baseline.score(streams, tiny_examples(3), MicroBatches(1, ranks))
                for name, baseline in BASELINES.items()
            }
        if ranks.is_first:
            flat = {f"{name}.{node}": values for name, all_ in scores.items() for node, values in all_.items()}
            save_file(flat, folder / "scores.safetensors")


if __name__ == "__main__":
    main()
