"""Measurements of one of two ranks under ZeRO-3; run by torchrun, writes rank-N.json beside the model.

python -m torch.distributed.run --nproc-per-node 2 -m tests.helpers.zero3_rank MODEL_FOLDER DEEPSPEED_JSON DTYPE
"""

import json
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import joined_ranks
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.deepspeed_config import read_deepspeed, with_auto_values
from bigcircuit.model.granularity import node_counts
from bigcircuit.model.load import load_frozen, skeleton
from bigcircuit.model.zero3 import loading_sharded, numel
from bigcircuit.runtime.host_memory import return_freed_memory
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import update
from tests.helpers.tiny_models import TINY, tiny_examples


@contextmanager
def peak_of(seen: dict[str, float], name: str):
    """Measure the peak of anonymous memory above the start, bytes: memory of this process without pages of mapped files."""
    start, done = anonymous(), threading.Event()
    seen[name] = 0

    def watch():
        while not done.is_set():
            seen[name] = max(seen[name], anonymous() - start)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def anonymous() -> int:
    """Return the bytes of anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@contextmanager
def counting_gathers(frozen):
    """Count how often each parameter is gathered, by name."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    names = {id(p): name for name, p in frozen.model.named_parameters()}
    name = "_PartitionedParameterCoordinator__all_gather_params_"
    plain, counts = getattr(Coordinator, name), Counter()

    def counted(self, params, forward, quantize=False):
        missing = [p for p in params if p.ds_status.name == "NOT_AVAILABLE"]
        counts.update(names[id(p)] for p in missing)
        return plain(self, params, forward, quantize)

    setattr(Coordinator, name, counted)
    try:
        yield counts
    finally:
        setattr(Coordinator, name, plain)


def look(folder: Path, settings_path: str, dtype: str) -> dict:
    """Load the model, make two updates of a population of two, and return measurements by name."""
    config = load(None, {
        "model.path": str(folder), "model.dtype": dtype, "population.seeds": 2, "train.batch_size": 4,
        "train.micro_batch_size": 2, "train.penalty_ramp": 0.5, "target.total": 40, "deepspeed": settings_path,
    })  # fmt: skip
    seen: dict = {}
    return_freed_memory()
    with joined_ranks() as ranks:
        settings = read_deepspeed(config.deepspeed)
        with loading_sharded(
            with_auto_values(settings, skeleton(config.model)), torch.float32
        ):  # so that imports are not measured
            AutoModelForCausalLM.from_config(LlamaConfig(**TINY))
        with peak_of(seen, "peak_loading"):
            frozen = load_frozen(config.model, ranks.device, settings)
        parameters = dict(frozen.model.named_parameters())
        seen["whole"] = sum(numel(p) * p.element_size() for p in parameters.values())
        seen["mine"] = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in parameters.values())
        seen["held"] = _held(frozen)
        state = TrainState.new(
            Population.new(members(config), frozen.shapes), node_counts(frozen.shapes, config.gates.granularities)
        )
        micro_batches, chosen = MicroBatches.of(config, ranks), tiny_examples(4)
        with Streams(frozen, INTERCHANGE) as streams:
            references = ReferenceLogits(streams, chosen, micro_batches)
            update(state, streams, references, chosen, micro_batches)
            seen["held_after"] = _held(frozen)
            with counting_gathers(frozen) as counts, peak_of(seen, "peak_update"):
                update(state, streams, references, chosen, micro_batches)
        seen["gathers"] = dict(counts)
        seen["trained"] = [name for name, p in parameters.items() if p.requires_grad or p.grad is not None]
        optimized = [
            p
            for member_state in state.member_states
            for group in member_state.optimizer.param_groups
            for p in group["params"]
        ]
        seen["gates"] = {
            "dtypes": sorted({str(p.dtype) for p in optimized}),
            "whole": all(p.numel() and not hasattr(p, "ds_id") for p in optimized),
            "sum": float(sum(p.double().abs().sum() for p in optimized)),
            "count": sum(p.numel() for p in optimized),
        }
        seen["model_dtypes"] = sorted({str(p.dtype) for p in parameters.values()})
        seen["engine_optimizer"] = type(frozen.engine.optimizer).__name__
    return seen


def _held(frozen) -> int:
    """Return the bytes of gathered parameters that this rank holds now, besides its partitions."""
    return sum(p.data.numel() * p.element_size() for p in frozen.model.parameters())


if __name__ == "__main__":
    target = Path(sys.argv[1])
    import os

    result = look(target, sys.argv[2], sys.argv[3])
    (target / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))
