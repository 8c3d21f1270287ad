"""Folders of exported models as `recover` reads and writes them."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from torch import Tensor

from bigcircuit.distributed.signals import exiting_on_sigterm
from bigcircuit.errors import UserError
from bigcircuit.export.compact_config import MODEL_TYPE
from bigcircuit.export.formats import EXPORT_FORMATS
from bigcircuit.export.fresh_process import run_prompts
from bigcircuit.export.loading import register_config
from bigcircuit.export.result import EXPORT_FILE
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.verify import FreshRun, compare_outputs, random_prompts, run_fresh
from bigcircuit.export.writer import Planned, copy_beside, write_text, write_weights
from bigcircuit.io.files import read_json, remove_leftovers, removing, reporting_disk_errors, sync_dir, temporary_path
from bigcircuit.model.architectures import ARCHITECTURES
from bigcircuit.model.library_errors import explain_library_errors, quieten_libraries
from bigcircuit.model.resolve import ResolvedModel
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.recover.trainable import TrainedModel
from bigcircuit.results.shape import check_shape
from bigcircuit.runtime.progress import ProgressDisplay

RECOVER_FILE = "recover.json"
TRAINED_FORMATS = ("compact", "uniform", "zeroed")
"""Formats whose weights transformers trains."""
_SHARE_OF_FREE = 0.8
"""Share of the free memory that the comparison in a fresh process may need."""


@dataclass(frozen=True)
class ExportFolder:
    """A folder that `bigcircuit export` wrote."""

    path: Path
    result: Mapping[str, Any]
    """Content of export.json."""
    hf_config: Any
    dtypes: Mapping[str, torch.dtype]
    """Dtype of every stored tensor."""
    sizes: Mapping[str, torch.Size]

    @property
    def format(self) -> str:
        """Name of the format."""
        return self.result["format"]

    @property
    def dtype(self) -> str:
        """Dtype of the weights, as a config names it."""
        return self.result["dtype"]

    @property
    def base(self) -> dict[str, str]:
        """Settings of the base model."""
        found = {"path": self.result["model"], "dtype": self.dtype}
        return found | ({"adapter": self.result["adapter"]} if self.result["adapter"] else {})

    @property
    def files(self) -> list[Path]:
        """Config and weights."""
        return [self.path / "config.json", *sorted(self.path.glob("*.safetensors"))]

    def check_division(self, division: Mapping[str, str]) -> None:
        """Raise UserError where the export was recovered on the same text divided otherwise, and was trained on held-out text.

        division: hashes of a text and of its held-out windows, as export.json has them.
        """
        before = self.result.get("recovered", {})
        if before.get("text_sha256") == division["text_sha256"] and {**before, **division} != before:
            raise UserError(
                f"{self.path}: was recovered on this text divided otherwise, so it was trained on some of the held-out text; "
                "give recover.seed, recover.held_out, recover.validation and recover.tokens as then, or other text"
            )

    @torch.no_grad()
    def rounded(self, model: Any) -> Any:
        """Round the weights of a model to the dtypes in which they are stored, in place."""
        for name, parameter in model.named_parameters():
            if (stored := self.dtypes.get(name)) not in (None, parameter.dtype):
                parameter.copy_(parameter.to(stored).to(parameter.dtype))
        return model


def open_export(path: Path) -> ExportFolder:
    """Open a folder without its weights. Raises UserError for anything but an export whose weights can be trained."""
    remedy = "give the folder that `bigcircuit export` wrote"
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; {remedy}")
    result = read_json(path / EXPORT_FILE, remedy, "format", "model", "dtype", "adapter")
    check_shape(result.get("recovered", {}), dict[str, Any], f"{path / EXPORT_FILE}: recovered", remedy)
    if result["format"] not in TRAINED_FORMATS:
        raise UserError(
            f"{path}: is of format {result['format']}, whose weights are not trained; export it as {', '.join(TRAINED_FORMATS)}"
        )
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{path}: holds an adapter and no weights; recover the export that it is of again, with recover.merge true"
        )
    from transformers import AutoConfig

    quieten_libraries()
    register_config()
    model_type = read_json(path / "config.json", remedy, "model_type")["model_type"]
    if (model_type == MODEL_TYPE) != (result["format"] == "compact"):
        raise UserError(
            f"{path / EXPORT_FILE}: says {result['format']}, and config.json is of {model_type}; {remedy}, unchanged"
        )
    dtypes, sizes = {}, {}
    for file in sorted(path.glob("*.safetensors")):
        with (
            explain_library_errors(f"{file}: cannot be read", path, remedy),
            safe_open(file, framework="pt") as weights,
        ):
            for name in weights.keys():  # noqa: SIM118
                part = weights.get_slice(name)
                if (dtype := _DTYPES.get(part.get_dtype())) is None:
                    raise UserError(f"{file}: {name} is {part.get_dtype()}, which no export writes; {remedy}")
                dtypes[name], sizes[name] = dtype, torch.Size(part.get_shape())
    if not dtypes:
        raise UserError(f"{path}: holds no weights (*.safetensors); {remedy}")
    with explain_library_errors(f"{path}: its config.json cannot be opened", path, remedy):
        hf_config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    row = ARCHITECTURES.get(hf_config.model_type)
    if row is not None and not row.trains_weights:
        raise UserError(
            f"{path}: is a {row.kind} ({hf_config.model_type}), which is not trained; recover a dense model"
        )
    return ExportFolder(path, result, hf_config, dtypes, sizes)


def check_base(export: ExportFolder, base: ResolvedModel) -> None:
    """Raises UserError for a base that the export was not made of: exports keep the embeddings of their base as they are.

    An adapter or quantised weights, which may change them, are not compared.
    """
    model = base.skeleton.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    name = names.get(id(model.get_input_embeddings().weight))
    if name is None or name not in export.sizes or base.config.adapter or base.quantization.bits is not None:
        return
    with SourceWeights(base.config, model) as weights:
        of_base = weights(name)
    for file in export.files[1:]:
        with safe_open(file, framework="pt") as stored:
            if of_base is not None and name in stored.keys():  # noqa: SIM118
                first, second = of_base[:_COMPARED].float(), stored.get_slice(name)[:_COMPARED].float()
                if first.shape != second.shape or (first - second).norm() > _ROUNDING * first.norm():
                    raise UserError(
                        f"model.path {base.config.path}: has other embeddings than {export.path}; give the model that was "
                        "exported, with --model.path"
                    )


_COMPARED = 1024
"""Tokens whose embeddings are compared."""
_ROUNDING = 0.02
"""Above the relative difference of embeddings that were rounded to bfloat16."""
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def write_recovered(
    output: Path,
    export: ExportFolder,
    trained: TrainedModel,
    done: Any,
    settings: RecoverSettings,
    scores: Mapping[str, Any],
    progress: ProgressDisplay,
) -> dict[str, Any]:
    """Write the recovered model, open it in a fresh process and compare it with the model in memory.

    done: the merged model, its weights rounded. The files take their places at the end, export.json last. Returns what
    recover.json holds of the comparison. Raises UserError if the folder does not load or computes something else.
    """
    folder = temporary_path(output / "model")
    remove_leftovers(output / "model")
    with exiting_on_sigterm(), removing(folder):
        with reporting_disk_errors(folder):
            folder.mkdir(parents=True)
        if settings.merge:
            _write_merged(folder, export, done, progress)
        else:
            trained.lora.peft_config["default"].base_model_name_or_path = str(export.path.resolve())
            with reporting_disk_errors(folder):
                trained.lora.save_pretrained(folder)
        compared = _compared(folder, export, done, settings, progress)
        content = {
            **export.result,
            "output": str(output),
            "recovered": {"from": str(export.path), **scores},
            **compared,
        }
        write_text(folder / EXPORT_FILE, json.dumps(content, indent=2) + "\n")
        with reporting_disk_errors(output):
            sync_dir(folder)
            for path in sorted(folder.iterdir(), key=lambda path: path.name == EXPORT_FILE):
                path.replace(output / path.name)
            sync_dir(output)
    return compared


def _write_merged(folder: Path, export: ExportFolder, model: Any, progress: ProgressDisplay) -> None:
    def planned(name: str, parameter: Tensor) -> Planned:
        dtype = export.dtypes[name]
        return Planned(name, tuple(parameter.shape), dtype, lambda: parameter.detach().to(dtype).cpu())

    tensors = [planned(name, parameter) for name, parameter in model.named_parameters()]
    with progress.phase("writing", sum(one.bytes for one in tensors), "bytes") as phase:
        write_weights(folder, tensors, phase.advance)
    with reporting_disk_errors(folder):
        shutil.copyfile(export.path / "config.json", folder / "config.json")
    copy_beside(export.path, folder)


def _compared(
    folder: Path, export: ExportFolder, done: Any, settings: RecoverSettings, progress: ProgressDisplay
) -> dict[str, Any]:
    """Compare logits and greedy text of the written folder, opened in a fresh process, with those of the model in memory."""
    if not settings.verify:
        return {"verification": None, "not_done": "not opened again, as asked for"}
    needed = 2 * 4 * sum(size.numel() for size in export.sizes.values())
    free = int(_SHARE_OF_FREE * psutil.virtual_memory().available)
    if needed > free:
        why = (
            f"not compared in a fresh process: that needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
        )
        progress.print_line(f"note: {why}")
        return {"verification": None, "not_done": why}
    prompts = random_prompts(export.hf_config)
    loader = EXPORT_FORMATS[export.format].loader if settings.merge else "bigcircuit"
    with progress.phase("opening the recovered model in a fresh process"):
        run = FreshRun(loader=loader, folder=folder, base="", dtype="float32", prompts=prompts, speed=None)
        [fresh] = run_fresh([run])
        model = done.float().cpu()
        found = compare_outputs(
            run_prompts(model, prompts.ids, prompts.prompt_tokens, prompts.new_tokens), fresh.outputs
        )
    if not found.is_equal:
        raise UserError(
            f"{folder}: the recovered model, opened in a fresh process, differs from the one in memory by "
            f"{found.largest_difference:.2g} in a logit, more than {found.tolerance:.2g}, and was not kept; please report it, "
            "with what `bigcircuit env` prints"
        )
    progress.print_line(
        f"opened in a fresh process: logits differ by {found.largest_difference:.1g} at most (allowed {found.tolerance:.1g}), "
        f"{found.same_tokens} of {found.tokens} greedy tokens are equal"
    )
    return {"verification": found._asdict()}
