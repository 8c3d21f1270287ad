"""Write a uniform cut as a GGUF file, tensor by tensor.

The layout is that of llama.cpp's converter: its names of tensors, and for Llama and Mistral rows of queries and keys so ordered
that the two numbers that rotate together lie beside each other.
"""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigcircuit.config.extras import need
from bigcircuit.errors import UserError
from bigcircuit.export.cut import LayerCut
from bigcircuit.export.folder import CutTensors, config_json
from bigcircuit.export.folder_plan import written_sizes
from bigcircuit.export.gguf_families import GGUF_FAMILIES, GgufFamily, add_family_settings, check_settings, rope_of
from bigcircuit.export.gguf_tokenizer import GgufTokenizer, read_tokenizer
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.uniform_cut import UniformCut, uniform_cut
from bigcircuit.export.writer import Planned, write_text
from bigcircuit.io.files import reporting_disk_errors

GGUF_FILE = "model.gguf"


_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Module of a decoder layer -> its name in GGUF."""
_BIASES_NOTE = (
    "projections have biases, which llama.cpp adds; transformers adds them with config=AutoConfig.from_pretrained(DIR), and drops "
    "them without"
)
_CONFIG_NOTE = "transformers does not read all settings from such a file: give config=AutoConfig.from_pretrained(DIR)"


def plan_gguf(request: ExportRequest) -> PreparedExport:
    """Plan the file. Raises UserError for what a reader of the file would not compute, and where the package gguf is absent."""
    request.check_layers("gguf")
    config = request.hf_config
    family = GGUF_FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(
            f"--format gguf: {config.model_type} is none of {', '.join(GGUF_FAMILIES)}, whose layout is written here; use --format "
            "uniform, and llama.cpp's own converter on that folder"
        )
    if any(request.biased) and not family.adds_biases:
        raise UserError(
            f"--format gguf: the constants of {request.ablation.name} ablation need biases, which llama.cpp does not add for "
            f"{config.model_type}; give --ablation zero"
        )
    remedy = "use --format uniform, and llama.cpp's own converter on that folder"
    kinds = {rope_of(config, kind).get("rope_type", "default") for kind in ("full_attention", "sliding_attention")}
    if scaled := kinds - {"default"}:
        raise UserError(f"--format gguf: rotary scaling {', '.join(sorted(scaled))} is not written here; {remedy}")
    need("--format gguf", "gguf")
    window = None if family.period else getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings and getattr(config, "use_sliding_window", True):
        raise UserError(f"--format gguf: attention within a window of {window} tokens is not written here; {remedy}")
    # The only one of the two that transformers reads back; its class can have all biases that llama.cpp adds.
    biases = {key: True for key, needed in zip(("attention_bias", "mlp_bias"), request.biased, strict=True) if needed}
    cut = uniform_cut(request, biases, only=family.written_as)
    written = cut.written.shapes[0]
    check_settings(family, cut.written.model.config)
    if not family.takes_width and written.heads * written.head_dim != written.hidden:
        raise UserError(
            f"--format gguf: llama.cpp reads {config.model_type} with all {request.base.shapes[0].heads} heads alone, and here are "
            f"{written.heads}; close neurons of MLPs alone (gates.granularities), or use --format uniform"
        )
    has_biases = family.adds_biases and any(name.endswith(".bias") for name, _ in cut.written.model.named_parameters())
    tokenizer = read_tokenizer(request.model.tokenizer, config.vocab_size)
    notes = [
        *cut.notes,
        *([f"no tokenizer is in the file: {tokenizer}; give token ids"] if isinstance(tokenizer, str) else []),
        *([_BIASES_NOTE] if has_biases else []),
        *([] if family.read_by_itself else [_CONFIG_NOTE]),
    ]
    parameters = sum(parameter.numel() for parameter in cut.written.model.parameters())
    dtype = SourceWeights(request.model.config, request.base.model).dtype

    def write(folder: Path, source: SourceWeights, advance: Callable[[int], None]) -> None:
        tensors = CutTensors(request.base, cut.written, cut.cuts, source)
        write_gguf(folder / GGUF_FILE, tensors, cut, tokenizer, advance)
        if has_biases or not family.read_by_itself:
            config = config_json(cut.written.model.config, type(cut.written.model).__name__, source.dtype)
            write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")

    return PreparedExport(
        write=write,
        bytes=parameters * dtype.itemsize,
        parameters=parameters,
        sizes=written_sizes(cut.cuts, len(request.base.layers)),
        notes=notes,
    )


def write_gguf(
    path: Path, tensors: CutTensors, cut: UniformCut, tokenizer: GgufTokenizer | str, advance: Callable[[int], None]
) -> None:
    """Write the file. tokenizer: or why there is none; advance: is called with the bytes written since the call before."""
    from gguf import GGMLQuantizationType, GGUFWriter

    config, shape = cut.written.model.config, cut.written.shapes[0]
    family = GGUF_FAMILIES[config.model_type]
    writer = GGUFWriter(path, family.architecture)
    _add_settings(writer, config, cut.cuts, tokenizer)
    add_family_settings(writer, family, config)
    heads = (shape.heads, shape.kv_heads) if family.reordered else None
    planned = [_layout(one, heads, family) for one in tensors.planned()]
    kinds = {
        torch.float32: GGMLQuantizationType.F32,
        torch.float16: GGMLQuantizationType.F16,
        torch.bfloat16: GGMLQuantizationType.BF16,
    }
    for one in planned:
        stored = torch.empty(0, dtype=_stored(one.dtype)).numpy().dtype
        writer.add_tensor_info(one.name, one.size, stored, one.bytes, raw_dtype=kinds[one.dtype])
    with reporting_disk_errors(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in planned:
            writer.write_tensor_data(one.make().to(one.dtype).contiguous().view(_stored(one.dtype)).numpy())
            advance(one.bytes)
        for file in writer.fout or []:
            file.flush()
            os.fsync(file.fileno())
        writer.close()


def _stored(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numpy holds the bits: numpy has no bfloat16."""
    return torch.int16 if dtype == torch.bfloat16 else dtype


def _layout(one: Planned, heads: tuple[int, int] | None, family: GgufFamily) -> Planned:
    """Give a tensor its name and order of rows; norms are float32 in such files.

    heads: query and key/value heads whose rows are reordered.
    """
    module, _, leaf = one.name.rpartition(".")
    if module in _OUTSIDE:
        name, make = _OUTSIDE[module], one.make
    else:
        number, _, inside = module.removeprefix("model.layers.").partition(".")
        name, make = f"blk.{number}.{family.norms.get(inside) or _INSIDE[inside]}", one.make
        if heads is not None and inside.endswith(("q_proj", "k_proj")):
            make = _Reordered(one.make, heads[inside.endswith("k_proj")])
    if family.norm_offset and module.endswith("norm"):
        make = partial(_moved, make, family.norm_offset)
    dtype = torch.float32 if len(one.size) == 1 else one.dtype
    return Planned(f"{name}.{leaf}", one.size, dtype, make)


def _moved(make: Callable[[], Tensor], offset: float) -> Tensor:
    """Make a tensor in float32 with a number added."""
    return make().float() + offset


class _Reordered:
    """Makes a tensor whose rows [n d] of each head are reordered: the halves of a head are interleaved."""

    def __init__(self, make: Callable[[], Tensor], heads: int) -> None:
        self._make, self._heads = make, heads

    def __call__(self) -> Tensor:
        made = self._make()
        return made.view(self._heads, 2, -1, *made.shape[1:]).transpose(1, 2).reshape(made.shape)


def _add_settings(writer: Any, config: Any, cuts: list[LayerCut], tokenizer: GgufTokenizer | str) -> None:
    shape = cuts[0].written_shape
    writer.add_name("cut by bigcircuit")
    writer.add_file_type({"bfloat16": 32, "float16": 1}.get(str(config.dtype).removeprefix("torch."), 0))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(cuts))
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(rope_of(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if isinstance(tokenizer, str):
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.merges:
        writer.add_token_merges(tokenizer.merges)
    for add, number in _special_tokens(writer, config):
        add(number)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(False)


def _special_tokens(writer: Any, config: Any) -> Iterator[tuple[Callable[[int], None], int]]:
    for add, key in ((writer.add_bos_token_id, "bos_token_id"), (writer.add_eos_token_id, "eos_token_id")):
        number = getattr(config, key, None)
        number = number[0] if isinstance(number, list) else number
        if isinstance(number, int):
            yield add, number
