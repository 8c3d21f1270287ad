"""Divide the frozen weights over the ranks with DeepSpeed ZeRO stage 3.

Decoder layers are ZeRO leaf modules: a layer's weights are gathered at once before its forward pass, used for both streams and
all members, and freed after it; the same again in the backward pass. Gates, their moments and their gradients are not part of
the model: every rank holds all of them.
"""

import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigcircuit.errors import ReportedError, UserError
from bigcircuit.model.deepspeed_config import DeepSpeedConfig, pieces_on
from bigcircuit.model.dequantised_linear import logical_numel
from bigcircuit.model.layer_stream import read_ahead
from bigcircuit.model.sites import FrozenModel


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
        backend = "nccl" if os.environ.get("DS_ACCELERATOR") == "cuda" else "gloo"  # as `read_deepspeed` has set it
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def shard(frozen: FrozenModel, device: torch.device, settings: DeepSpeedConfig) -> FrozenModel:
    """Divide the frozen model's parameters over the ranks; a layer's parameters are gathered only while the layer runs.

    settings: as from `with_auto_values`. A model that was loaded whole is divided here: on CPU a rank's piece stays a view of the
    mapped weight files.
    """
    _prepare_deepspeed()
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import is_zero_param
    from deepspeed.utils import set_z3_leaf_module

    for layer in frozen.layers:
        set_z3_leaf_module(layer.module, True)
    for module in frozen.model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_frozen_linear, module)  # type: ignore[method-assign]
    if not any(map(is_zero_param, frozen.model.parameters())):
        if device.type == "cpu":
            _keep_vocabulary(frozen)
        _divide(frozen, device, settings)
    engine, *_ = deepspeed.initialize(model=frozen.model, config=settings)
    # The engine's own forward refuses a backward pass that the engine does not run; the hooks that gather are on the module.
    return replace(frozen, model=engine.module, device=device, engine=engine)


@contextmanager
def explain_deepspeed(path: str | None) -> Iterator[None]:
    """Turn an error that DeepSpeed raises inside into one line that names its config file and what it stopped at.

    path: of the config file; None changes nothing. Raises UserError.
    """
    try:
        yield
    except ReportedError:
        raise
    except Exception as error:
        frame = None if path is None else _frame_of_deepspeed(error)
        if frame is None:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"deepspeed {path}: DeepSpeed stopped in {frame.name} with {type(error).__name__}"
            f"{f' ({lines[0][:200]})' if lines else ' and no message'}; take out the settings that "
            "configs/deepspeed/zero3.json does not have"
        ) from error


def _frame_of_deepspeed(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost frame of an error that is of DeepSpeed, unless one of this package lies within it."""
    import deepspeed

    own, foreign = Path(__file__).parents[1], Path(deepspeed.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(foreign):
            return frame
        if Path(frame.filename).is_relative_to(own):
            return None
    return None


def _keep_vocabulary(frozen: FrozenModel) -> None:
    """Hide the vocabulary matrices from DeepSpeed, so that every rank uses those in the mapped files.

    The ranks of a host share the pages of the files. Divided, the largest parameters of the model would be gathered whole in each
    pass over a few tokens.
    """
    for module in (frozen.model.get_input_embeddings(), frozen.head):
        if "weight" not in module._parameters:
            continue  # an adapter is on it
        weight = module.weight.data
        del module.weight
        module.weight = weight  # an attribute and no parameter


def _divide(frozen: FrozenModel, device: torch.device, settings: DeepSpeedConfig) -> None:
    """Keep this rank's piece of each parameter that lies whole in the memory of the host, mapped or not.

    DeepSpeed's own conversion copies every piece, after rank 0 has sent all weights to all ranks: here every rank reads its own.
    """
    from deepspeed.runtime.zero.partition_parameters import Init, PartitionedParamStatus

    init = Init(config_dict_or_path=settings)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    offload = settings["zero_optimization"].get("offload_param") or {}
    to = device if pieces_on(settings) == "none" else torch.device("cpu")
    pin = device.type == "cuda" and bool(offload.get("pin_memory"))
    for parameter in frozen.model.parameters():
        size = -(-parameter.numel() // ranks)
        piece = parameter.data.view(-1)[rank * size : (rank + 1) * size]
        if len(piece) < size:  # the last rank's, which is padded
            piece = torch.cat([piece, piece.new_zeros(size - len(piece))])
        piece = piece.to(to)
        init._convert_to_deepspeed_param(parameter)
        parameter.ds_tensor = piece.pin_memory() if pin else piece
        parameter.ds_tensor.ds_numel = size
        parameter.ds_tensor.status = PartitionedParamStatus.AVAILABLE
        parameter.ds_tensor.final_location = None
        parameter.ds_numel_aligned = size * ranks
        parameter.partition()
    if to.type == "cpu" and not pin:
        read_ahead(frozen, "ds_tensor")


class _ViewOfParameter(NamedTuple):
    """A tensor that shows weights of a parameter."""

    parameter: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    """Elements behind the first one of the parameter."""


def _frozen_linear(module: nn.Linear, value: Tensor) -> Tensor:
    """Apply a linear map, keeping for the backward pass how it used its parameter, which is gathered again by then.

    torch would keep a view of the weights that were gathered for the forward pass; DeepSpeed's own version keeps the input, and
    multiplies in other shapes than torch where few rows are given, which changes last bits.
    """
    weight = module.weight
    gathered_at = weight.untyped_storage().data_ptr()

    def keep(saved: Tensor) -> Tensor | _ViewOfParameter:
        if saved.untyped_storage().data_ptr() != gathered_at:
            return saved
        offset = int(saved.storage_offset() - weight.storage_offset())
        return _ViewOfParameter(weight, saved.size(), saved.stride(), offset)

    with torch.autograd.graph.saved_tensors_hooks(keep, _seen_again):
        return nn.functional.linear(value, weight, module.bias)


def _seen_again(saved: Tensor | _ViewOfParameter) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    parameter = saved.parameter.detach()
    return parameter.as_strided(saved.size, saved.stride, parameter.storage_offset() + saved.offset)


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
    """Count the weights that a parameter stands for, divided over ranks or not, quantised or not."""
    return getattr(parameter, "ds_numel", logical_numel(parameter))
