"""Exports of tiny models: masks, ablations, and folders written without the command."""

from pathlib import Path
from typing import Any

import torch

from bigcircuit.ablation.ablation import ZERO, Ablation
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.config.schema import ModelConfig
from bigcircuit.export.formats import EXPORT_FORMATS
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.verify import FreshRun, Prompts
from bigcircuit.model.granularity import GRANULARITIES, SITE_WIDTH, widest
from bigcircuit.model.resolve import ResolvedModel, resolve_model
from tests.helpers.tiny_models import tiny_model

SHARES = {"head": 0.6, "attention_neuron": 0.8, "mlp_neuron": 0.5}
CLOSED = {"attention": [[False], [True], [True]], "mlp": [[True], [False], [True]]}
"""Sub-layers of three layers that are closed."""


def saved_tiny(name: str, settings: dict[str, Any], folder: Path) -> ResolvedModel:
    """Save a tiny model in a folder and open its config."""
    tiny_model(name, settings).model.save_pretrained(folder)
    return resolve_model(ModelConfig(path=str(folder)))


def uneven_masks(shapes, seed: int = 3, closed: dict[str, list] = CLOSED):
    """Draw masks that keep different numbers of heads and neurons in every layer."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.rand(len(shapes), max(GRANULARITIES[name].width(shape) for shape in shapes), generator=generator)
        < share
        for name, share in SHARES.items()
    }
    return complete_masks(drawn | {name: torch.tensor(rows) for name, rows in closed.items()}, shapes)


def leaf_masks(shapes, seed: int = 3, neurons: bool = False):
    """Draw masks of layers of any kind. neurons: whether those of experts have masks."""
    generator = torch.Generator().manual_seed(seed)
    shares = SHARES | {"mixer_neuron": 0.7, "expert": 0.6} | ({"expert_neuron": 0.2} if neurons else {})
    names = [name for name in shares if any(GRANULARITIES[name].width(shape) for shape in shapes)]
    return complete_masks(
        {name: torch.rand(len(shapes), widest(shapes, name), generator=generator) < shares[name] for name in names},
        shapes,
    )


def random_constants(shapes, sites=("attention", "mlp")) -> Ablation:
    """Mean ablation with constants drawn at random."""
    generator = torch.Generator().manual_seed(5)
    widths = {site: max(SITE_WIDTH[site](shape) for shape in shapes) for site in sites}
    return Ablation(
        "mean", {site: torch.randn(1, len(shapes), 1, width, generator=generator) for site, width in widths.items()}
    )


def request_of(model: ResolvedModel, ablation: Ablation = ZERO, masks=None) -> ExportRequest:
    """An export of a tiny model under uneven masks."""
    return ExportRequest(model, masks or uneven_masks(model.shapes), ablation)


def fresh_run(loader: str, folder: Path, prompts: Prompts) -> FreshRun:
    """Ask a fresh process for the outputs of an export."""
    return FreshRun(loader=loader, folder=folder, base="", dtype="float32", prompts=prompts, speed=None)


def write_export(name: str, request: ExportRequest, folder: Path) -> PreparedExport:
    """Write an export into a new folder, as the command does it."""
    prepared = EXPORT_FORMATS[name].prepare(request)
    folder.mkdir(parents=True)
    with SourceWeights(request.model.config, request.model.skeleton.model) as source:
        prepared.write(folder, source, lambda _: None)
    return prepared
