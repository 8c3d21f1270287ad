"""A circuit under zero ablation as an (IA)3 adapter of PEFT."""

import json
from collections.abc import Callable
from pathlib import Path

from bigcircuit.errors import UserError
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.writer import copy_beside, write_text
from bigcircuit.io.files import tensors_to_bytes, write_synced
from bigcircuit.model.granularity import ATTENTION, MLP, MLP_OUTPUT


def plan_ia3(request: ExportRequest) -> PreparedExport:
    """Plan the adapter. Raises UserError for constants, masks behind the MLP, and a base with an adapter."""
    request.check_layers("ia3", alike=False)
    if any(request.biased):
        raise UserError(
            f"--format ia3: closed nodes output constants under {request.ablation.name} ablation, and (IA)3 can only scale; "
            "use --ablation zero, or --format compact"
        )
    if any(MLP_OUTPUT in cut.opened for cut in request.cuts):
        raise UserError(
            "--format ia3: the circuit closes outputs of MLPs, and (IA)3 scales inputs or outputs, not both; use --format zeroed"
        )
    if request.model.config.adapter:
        raise UserError(
            f"--format ia3: the model has the adapter {request.model.config.adapter}, and peft would have to add both; "
            "use --format zeroed, which merges that adapter"
        )
    row, tensors = request.base.paths, {}
    for cut in request.cuts:
        for path, site in ((row.attention, ATTENTION), (row.mlp, MLP)):
            name = f"base_model.model.{row.layers}.{cut.layer}.{path}.ia3_l"
            tensors[name] = cut.opened[site].float().unsqueeze(0)
    settings = _adapter_config(request)

    def write(folder: Path, _: SourceWeights, advance: Callable[[int], None]) -> None:
        content = tensors_to_bytes(tensors, {"format": "pt"})
        write_synced(folder / "adapter_model.safetensors", content)
        write_text(folder / "adapter_config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")
        copy_beside(request.beside, folder)
        advance(len(content))

    count = sum(tensor.numel() for tensor in tensors.values())
    closed = sum(int((tensor == 0).sum()) for tensor in tensors.values())
    return PreparedExport(
        write=write,
        bytes=4 * count,
        parameters=count,
        sizes=[f"{closed} of {count} site neurons are closed"],
        notes=[
            "the adapter needs the base model and is no faster than it; --format uniform or compact makes a smaller model"
        ],
    )


def _adapter_config(request: ExportRequest) -> dict[str, object]:
    from peft import IA3Config

    row = request.base.paths
    targets = [row.attention, row.mlp]
    config = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=targets,
        feedforward_modules=targets,
        fan_in_fan_out=hasattr(request.base.layers[0].attention, "nx"),
        base_model_name_or_path=request.model.config.path if request.beside is None else str(request.beside.resolve()),
        revision=request.model.config.revision,
        inference_mode=True,
    )
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return {key: getattr(value, "value", value) for key, value in content.items()}
