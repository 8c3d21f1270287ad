"""Frozen weights in pieces: a model whose parameters DeepSpeed ZeRO stage 3 divides over the ranks.

Decoder layers are ZeRO leaf modules: a layer's weights are gathered in one go when it is entered, serve both streams and all
members, and are let go when it is left; once more in the backward pass. Gates, their moments and their gradients are no part
of the model and stay whole on every rank.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigcircuit.errors import UserError
from bigcircuit.model.sites import FrozenModel

_LONGEST_BUILD = 900
"""Seconds that DeepSpeed's async_io may take to compile."""

DeepSpeedConfig = dict[str, Any]
_NOT_OURS = {
    "optimizer": "the gates have an optimizer of their own (train.lr)",
    "scheduler": "the gates have a schedule of their own (train.lr, train.lr_final)",
    "bf16": "it would cast gates to bfloat16; set model.dtype",
    "fp16": "it would cast gates to float16; set model.dtype",
    "train_batch_size": "set train.batch_size",
    "train_micro_batch_size_per_gpu": "set train.micro_batch_size",
    "gradient_accumulation_steps": "set train.micro_batch_size",
    "gradient_clipping": "set train.clip",
}
"""Sections of a DeepSpeed config that belong to our own settings, and what to do instead."""


def read_deepspeed(path: str | None) -> DeepSpeedConfig | None:
    """The DeepSpeed config of a run, or None when weights stay whole on every rank.

    Below stage 3 ZeRO divides gradients and optimizer state, of which frozen weights have none. Raises UserError.
    """
    if path is None:
        return None
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"deepspeed {path}: no such file; configs/deepspeed/ holds six to choose from") from error
    except (OSError, ValueError) as error:
        raise UserError(f"deepspeed {path}: not a JSON file ({error})") from error
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (0, 1, 2, 3):
        raise UserError(f"deepspeed {path}: zero_optimization.stage is {stage!r}; set it to 0, 1, 2 or 3")
    for name, instead in _NOT_OURS.items():
        if name in settings:
            raise UserError(f"deepspeed {path}: take {name} out, {instead}")
    if stage != 3:
        return None
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # DeepSpeed need not guess
    _check_nvme(path, zero.get("offload_param") or {})
    return settings


def _check_nvme(path: str, offload: Mapping[str, Any]) -> None:
    if offload.get("device") != "nvme":
        return
    folder = Path(str(offload.get("nvme_path", "")))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"deepspeed {path}: offload_param.nvme_path {folder} is no folder to write to; make it or change it"
        )
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import _get_build_directory

    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"  # ninja lies beside python
    for name in ("async_io", "pin_memory"):
        lock = Path(_get_build_directory(name, False), "lock")
        if lock.exists() and time.time() - lock.stat().st_mtime > _LONGEST_BUILD:
            raise UserError(f"deepspeed {path}: a build was cut off and left {lock}, which torch waits for; remove it")
    try:
        AsyncIOBuilder().load(verbose=False)  # compiles on first use
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        raise UserError(
            f"deepspeed {path}: offloading to NVMe needs DeepSpeed's async_io, which needs libaio and a C++ compiler "
            f"({str(error).splitlines()[0]}; Debian: apt install libaio-dev g++); install them or use zero3_offload_cpu.json"
        ) from error


@contextmanager
def loading_sharded(settings: DeepSpeedConfig | None, dtype: torch.dtype) -> Iterator[None]:
    """Inside, `from_pretrained` keeps this rank's piece of every parameter and never makes the whole model.

    settings: completed, as for `shard`.
    """
    if settings is None:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # The section is for loading alone: without it transformers keeps float32 whatever dtype was asked for.
    precision = {torch.bfloat16: {"bf16": {"enabled": True}}, torch.float16: {"fp16": {"enabled": True}}}.get(dtype, {})
    _prepare_deepspeed()
    held = HfDeepSpeedConfig({**settings, **precision})  # transformers keeps a weak reference only
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del held


def _prepare_deepspeed() -> None:
    """Have DeepSpeed use the process group there is, quietly and without compiling anything."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it even where there is one process
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as operators
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    # DeepSpeed calls it by its old name for every layer.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated", category=FutureWarning)
    operators["deepspeed_shm_comm"] = False  # a C++ extension that is built with g++ on first use; gloo does the same
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def shard(frozen: FrozenModel, device: torch.device, settings: DeepSpeedConfig) -> FrozenModel:
    """Hand the frozen model to DeepSpeed: from here on its parameters are in pieces outside their layer's turn.

    settings: completed, see `complete`. A model that was loaded whole is divided here.
    """
    _prepare_deepspeed()
    import deepspeed
    from deepspeed.utils import set_z3_leaf_module

    for layer in frozen.layers:
        set_z3_leaf_module(layer.module, True)
    for module in frozen.model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_frozen_linear, module)
    engine, *_ = deepspeed.initialize(model=frozen.model, config=settings)
    # The engine's own forward would refuse a backward pass that it does not run; its hooks sit on the module.
    return replace(frozen, model=engine.module, device=device, engine=engine)


class _FrozenLinear(torch.autograd.Function):
    """A linear map that keeps its parameter for the backward pass, and so whatever is gathered then.

    torch would keep a view of the weights that were gathered for the forward pass, DeepSpeed's own version the input.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return nn.functional.linear(value, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradient.matmul(weight), None, None


def _frozen_linear(module: nn.Linear, value: Tensor) -> Tensor:
    return _FrozenLinear.apply(value, module.weight, module.bias)


@contextmanager
def gathered(frozen: FrozenModel, module: nn.Module) -> Iterator[None]:
    """Inside, every rank has the weights of a module of the model whole, to look at; all ranks must enter."""
    if frozen.engine is None:
        yield
        return
    import deepspeed

    frozen.engine.empty_partition_cache()  # what was fetched ahead for the next layer may still be on its way
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        yield


def numel(parameter: torch.Tensor) -> int:
    """Entries of a parameter, whether it is whole or in pieces."""
    return getattr(parameter, "ds_numel", parameter.numel())


def completed(settings: DeepSpeedConfig, frozen: FrozenModel) -> DeepSpeedConfig:
    """The config with its `auto` values filled in for a model: fetch one layer ahead and hold no more than two."""
    largest = max(sum(map(numel, layer.module.parameters())) for layer in frozen.layers)
    zero = {**settings["zero_optimization"], "memory_efficient_linear": False}  # see _FrozenLinear
    _fill(zero, {"stage3_prefetch_bucket_size": largest, "stage3_max_live_parameters": 2 * largest})
    if "offload_param" in zero:
        zero["offload_param"] = dict(zero["offload_param"])
        # A piece on disk is padded to the alignment of the file system.
        _fill(zero["offload_param"], {"buffer_size": max(map(numel, frozen.model.parameters())) + (1 << 14)})
    return {**settings, "zero_optimization": zero, "train_micro_batch_size_per_gpu": 1}


def _fill(section: dict[str, Any], values: Mapping[str, int]) -> None:
    section.update({name: value for name, value in values.items() if section.get(name) == "auto"})
