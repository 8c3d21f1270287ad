"""Resolved runs of the embedded model, or of a model at hand, without any pairs: for predictions of memory."""

from typing import Any

from bigcircuit.config.load import load, members
from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import TaskData
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.model.deepspeed_config import read_deepspeed
from bigcircuit.model.load import skeleton
from bigcircuit.model.resolve import ResolvedModel
from bigcircuit.model.sites import FrozenModel
from bigcircuit.train.resolve import ResolvedRun


def without_pairs(settings: Config | dict[str, Any] | None = None, meta: FrozenModel | None = None) -> ResolvedRun:
    """Resolve a config, or dotted settings, but for the pairs. meta: the model on the meta device, by default the config's."""
    config = settings if isinstance(settings, Config) else load(None, settings)
    meta = meta or skeleton(config.model)
    model = ResolvedModel(
        config=config.model,
        hf_config=meta.model.config,
        tokenizer=None,
        skeleton=meta,
        deepspeed=read_deepspeed(config.deepspeed),
    )
    return ResolvedRun(
        config=config,
        members=tuple(members(config)),
        model=model,
        data=TaskData(splits={}, pairs=[], sha256="", tokens_sha256=""),
        ablation_data=None,
        micro_batches=MicroBatches(config.train.micro_batch_size),
    )
