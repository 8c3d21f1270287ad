"""Divide the frozen weights over the ranks with DeepSpeed ZeRO stage 3.

Decoder layers are ZeRO leaf modules: a layer's weights are gathered at once before its forward pass, used for both streams and
all members, and freed after it; the same again in the backward pass. Gates, their moments and their gradients are not part of
the model: every rank holds all of them.
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
_UNSUPPORTED = {
    "optimizer": "the gates have an optimizer of their own (train.lr)",
    "scheduler": "the gates have a schedule of their own (train.lr, train.lr_final)",
    "bf16": "it would cast gates to bfloat16; set model.dtype",
    "fp16": "it would cast gates to float16; set model.dtype",
    "train_batch_size": "set train.batch_size",
    "train_micro_batch_size_per_gpu": "set train.micro_batch_size",
    "gradient_accumulation_steps": "set train.micro_batch_size",
    "gradient_clipping": "set train.clip",
}
"""Section of a DeepSpeed config that a setting of bigcircuit replaces -> what to do instead."""


def read_deepspeed(path: str | None) -> DeepSpeedConfig | None:
    """Read and check a DeepSpeed config file; None unless it asks for stage 3.

    Below stage 3 ZeRO divides gradients and optimizer state, which frozen weights do not have. Raises UserError for a file that
    cannot be read or has a section that bigcircuit replaces.
    """
    if path is None:
        return None
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"deepspeed {path}: no such file; configs/deepspeed/ holds six to choose from") from error
    except (OSError, ValueError) as error:
        raise UserError(f"deepspeed {path}: not a JSON file ({error})") from error
    section = settings.get("zero_optimization") if isinstance(settings, dict) else None
    zero: dict[str, Any] = section if isinstance(section, dict) else {}
    stage = zero.get("stage")
    if stage not in (0, 1, 2, 3):
        raise UserError(f"deepspeed {path}: zero_optimization.stage is {stage!r}; set it to 0, 1, 2 or 3")
    for name, instead in _UNSUPPORTED.items():
        if name in settings:
            raise UserError(f"deepspeed {path}: take {name} out, {instead}")
    if stage != 3:
        return None
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # DeepSpeed need not guess
    _check_nvme(path, zero.get("offload_param") or {})
    return settings


def _check_nvme(path: str, offload: Mapping[str, Any]) -> None:
    """Check that weights can be offloaded to NVMe, where the config asks for it. Raises UserError."""
    if offload.get("device") != "nvme":
        return
    folder = Path(str(offload.get("nvme_path", "")))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"deepspeed {path}: offload_param.nvme_path {folder} is no folder to write to; make it or change it"
        )
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import _get_build_directory

    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"  # ninja is beside python
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
    """Have `from_pretrained` inside keep only this rank's part of every parameter, without ever holding the whole model.

    settings: as from `with_auto_values`; None changes nothing.
    """
    if settings is None:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # The section is for loading only: without it transformers loads float32 whatever dtype is requested.
    precision = {torch.bfloat16: {"bf16": {"enabled": True}}, torch.float16: {"fp16": {"enabled": True}}}.get(dtype, {})
    _prepare_deepspeed()
    reference = HfDeepSpeedConfig({**settings, **precision})  # transformers keeps a weak reference only
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del reference


def _prepare_deepspeed() -> None:
    """Have DeepSpeed use the existing process group, or one of a single rank, without log lines and compilation."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it even with a single process
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as operators
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    # DeepSpeed calls the function by its deprecated name for every layer.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated", category=FutureWarning)
    operators["deepspeed_shm_comm"] = False  # a C++ extension, built with g++ on first use; gloo does the same
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def shard(frozen: FrozenModel, device: torch.device, settings: DeepSpeedConfig) -> FrozenModel:
    """Divide the frozen model's parameters over the ranks; a layer's parameters are gathered only while the layer runs.

    settings: as from `with_auto_values`. A model that was loaded whole is divided here.
    """
    _prepare_deepspeed()
    import deepspeed
    from deepspeed.utils import set_z3_leaf_module

    for layer in frozen.layers:
        set_z3_leaf_module(layer.module, True)
    for module in frozen.model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_frozen_linear, module)  # type: ignore[method-assign]
    engine, *_ = deepspeed.initialize(model=frozen.model, config=settings)
    # The engine's own forward refuses a backward pass that the engine does not run; the hooks that gather are on the module.
    return replace(frozen, model=engine.module, device=device, engine=engine)


class _FrozenLinear(torch.autograd.Function):
    """Linear map that saves its parameter for the backward pass, in which the parameter is gathered again.

    torch would save a view of the weights that were gathered for the forward pass; DeepSpeed's own version saves the input.
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
    """Gather the weights of a module on every rank inside, to read them; all ranks must enter together."""
    if frozen.engine is None:
        yield
        return
    import deepspeed

    frozen.engine.empty_partition_cache()  # weights prefetched for the next layer may still be in transfer
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        yield


def numel(parameter: torch.Tensor) -> int:
    """Count the entries of a parameter, divided over ranks or not."""
    return getattr(parameter, "ds_numel", parameter.numel())


def with_auto_values(settings: DeepSpeedConfig, frozen: FrozenModel) -> DeepSpeedConfig:
    """Fill in the `auto` values of a DeepSpeed config for a model: prefetch one layer, hold at most two."""
    largest = max(sum(map(numel, layer.module.parameters())) for layer in frozen.layers)
    zero = {**settings["zero_optimization"], "memory_efficient_linear": False}  # see _FrozenLinear
    _fill(zero, {"stage3_prefetch_bucket_size": largest, "stage3_max_live_parameters": 2 * largest})
    if "offload_param" in zero:
        zero["offload_param"] = dict(zero["offload_param"])
        # A parameter's part on disk is padded to the alignment of the file system.
        _fill(zero["offload_param"], {"buffer_size": max(map(numel, frozen.model.parameters())) + (1 << 14)})
    return {**settings, "zero_optimization": zero, "train_micro_batch_size_per_gpu": 1}


def _fill(section: dict[str, Any], values: Mapping[str, int]) -> None:
    section.update({name: value for name, value in values.items() if section.get(name) == "auto"})
