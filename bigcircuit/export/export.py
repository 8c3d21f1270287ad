"""`bigcircuit export`: a circuit as a model that runs without this project, top to bottom."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.config.plain import check_name
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.distributed.signals import exiting_on_sigterm
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.open_circuits import LoadedCircuit, check_same_model, open_circuits
from bigcircuit.evaluation.plan import EvaluationPlan, plan_evaluation
from bigcircuit.export.config import FREEZABLE, ExportSettings
from bigcircuit.export.formats import EXPORT_FORMATS, ExportFormat
from bigcircuit.export.limits import within_limits
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.rescore import ScoredAs, rescore
from bigcircuit.export.result import EXPORT_FILE, ExportResult, result_lines, save_export_result
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.verify import (
    FreshResult,
    FreshRun,
    Verification,
    compare_outputs,
    random_prompts,
    run_fresh,
    run_masked,
)
from bigcircuit.gates.discretise import Masks
from bigcircuit.io.files import (
    check_writable,
    remove_leftovers,
    removing,
    reporting_disk_errors,
    sync_dir,
    temporary_path,
)
from bigcircuit.model.granularity import ATTENTION, GRANULARITIES, LEAVES, MLP, SITE_WIDTH
from bigcircuit.model.load import load_frozen
from bigcircuit.model.resolve import ResolvedModel, resolve_model
from bigcircuit.model.weight_files import model_folder
from bigcircuit.runtime.progress import ProgressDisplay

_PREFILL, _DECODE = 512, 32
"""Tokens of the measurements of speed."""
_SHARE_OF_FREE = 0.8
"""Share of the free memory that a verification may need."""


class _Opened(NamedTuple):
    """A circuit with its model, checked, before weights are loaded."""

    loaded: LoadedCircuit
    model: ResolvedModel
    plan: EvaluationPlan | None
    """Pairs and constants, where the circuit is scored again."""
    masks: Masks
    """The masks that are exported."""


def export_circuit(
    names: Sequence[str],
    settings: ExportSettings,
    ranks: Ranks,
    *,
    config: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Write a circuit as a model, open it again in a fresh process, and compare the two.

    names: one run folder or circuit file; config, overrides: as for `evaluate_circuits`. Raises UserError for mistakes of the user,
    before weights are loaded wherever possible; nothing is left at the output then.
    """
    progress = ProgressDisplay(ranks.is_first, ranks.set_status)
    export_format, output = _format(settings), _output(settings)
    with progress.phase("reading the circuit"):
        opened = _open(names, settings, ranks, config, overrides or {}, progress)
    _check_is_plain(opened.model)
    ablation = settings.ablation or opened.loaded.found_under
    # What the format cannot say is refused before weights are loaded: whether there are constants is known by now.
    asked = ExportRequest(opened.model, opened.masks, _stand_in(opened, ablation), settings.multiple_of)
    export_format.prepare(asked)
    check_writable(output.parent)
    scored: list[ScoredAs] = []
    if opened.plan is not None:
        with progress.phase("loading weights"):
            frozen = opened.model.load(ranks.device)
        done = rescore(opened.plan, frozen, ablation, opened.masks)
        value, scored = done.ablation.to(torch.device("cpu")), done.rows
        del frozen
    else:
        value = opened.loaded.circuit.ablation or Ablation(ablation)
    request = replace(asked, ablation=value)
    prepared = export_format.prepare(request)
    with _aside(output) as folder:
        source = SourceWeights(opened.model.config, opened.model.skeleton.model)
        dtype = str(source.dtype).removeprefix("torch.")
        with progress.phase("writing", prepared.bytes, "bytes") as phase, source:
            prepared.write(folder, source, phase.advance)
        verification, fresh, skipped = _verified(export_format, folder, request, prepared, settings, dtype, progress)
        result = ExportResult.of(
            export_format, output, opened.loaded, request, prepared, scored, verification, fresh, skipped, dtype, folder
        )
        save_export_result(folder / EXPORT_FILE, result)
    for line in result_lines(result):
        progress.print_line(line)
    return result


def _check_is_plain(model: ResolvedModel) -> None:
    """Raise UserError for weights that cannot be cut as they are in their files."""
    if model.quantization.line or model.whole_config is not None:
        kind = "quantised" if model.quantization.line else f"a part of a {model.whole_config.model_type} checkpoint"
        raise UserError(
            f"model.path {model.config.path}: its weights are {kind}, which export does not cut; give the language model in plain "
            "weights"
        )


def _format(settings: ExportSettings) -> ExportFormat:
    known = ", ".join(EXPORT_FORMATS)
    if settings.format is None:
        raise UserError(f"export needs --format, one of {known}; `bigcircuit export --help` says what each is for")
    if settings.format not in EXPORT_FORMATS:
        raise UserError(f"--format {settings.format}: not a format; known: {known}")
    return EXPORT_FORMATS[settings.format]


def _output(settings: ExportSettings) -> Path:
    if settings.output is None:
        raise UserError("export needs --output, the folder to write")
    check_name(settings.output, "--output")
    output = Path(settings.output)
    if output.exists():
        raise UserError(f"{output}: exists already; move it, or name another folder with --output")
    return output


def _open(
    names: Sequence[str],
    settings: ExportSettings,
    ranks: Ranks,
    config: str | None,
    overrides: Mapping[str, Any],
    progress: ProgressDisplay,
) -> _Opened:
    """Open the circuit and its model, and where it is scored again its pairs. Raises UserError."""
    if len(names) != 1:
        raise UserError(
            "export needs one run folder or circuit file: bigcircuit export runs/quickstart --format uniform --output DIR"
        )
    found = open_circuits(names, (), config, overrides)
    if len(found) > 1:
        raise UserError(f"{names[0]}: holds {len(found)} circuits; name one of them, such as {found[0].path}")
    [loaded] = found
    ablation = settings.ablation or loaded.found_under
    if ablation not in FREEZABLE:
        kind = KINDS[ablation]
        why = (
            "on another prompt"
            if kind.needs_corrupted
            else "on the position"
            if kind.per_position
            else "on random numbers"
        )
        raise UserError(
            f"{loaded.path}: under {ablation} ablation what closed nodes output depends {why}, which weights cannot hold; choose "
            f"--ablation {' or '.join(FREEZABLE)}, under which the circuit is scored again"
        )
    changed = ablation != loaded.found_under or loaded.circuit.ablation is None or bool(settings.limits)
    if changed:
        wanted = tuple(dict.fromkeys((loaded.found_under, ablation)))
        asked = EvaluationSettings(ablations=wanted, any_model=settings.any_model, output=str(_output(settings).parent))
        plan = plan_evaluation(names, asked, ranks, config, overrides, progress)
        model, loaded = plan.model, plan.circuits[0]
    else:
        plan, model = None, resolve_model(loaded.config.model)
        check_same_model(loaded, model.shapes, settings.any_model, progress)
    masks = dict(loaded.circuit.masks)
    if settings.limits:
        if any(layer.sites.keys() != {ATTENTION, MLP} for layer in model.skeleton.layers):
            raise UserError(
                f"--{' and --'.join(settings.limits)}: {model.skeleton.model.config.model_type} has layers that are not one "
                "attention and one MLP; leave them out"
            )
        widths = {name: [g.width(shape) for shape in model.shapes] for name, g in GRANULARITIES.items()}
        masks = within_limits(loaded.circuit, widths, settings.limits, str(loaded.path))
    return _Opened(loaded, model, plan, masks)


def _stand_in(opened: _Opened, ablation: str) -> Ablation:
    """The ablation with the constants of the circuit, or with ones where they are not measured yet."""
    saved = opened.loaded.circuit.ablation
    if opened.plan is None and saved is not None:
        return saved
    if not KINDS[ablation].tensors:
        return Ablation(ablation)
    shapes = opened.model.shapes
    sites = {
        site: max(SITE_WIDTH[site](shape) for shape in shapes) for site, leaf in LEAVES.items() if leaf in opened.masks
    }
    return Ablation(ablation, {site: torch.ones(1, len(shapes), 1, width) for site, width in sites.items()})


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """Make a folder beside the output that takes its place at the end; after an error or SIGTERM nothing is left of it."""
    folder = temporary_path(output)
    remove_leftovers(output)
    with exiting_on_sigterm(), removing(folder):
        with reporting_disk_errors(folder):
            folder.mkdir(parents=True)
        yield folder
        with reporting_disk_errors(output):
            sync_dir(folder)
            folder.rename(output)
            sync_dir(output.parent)


def _verified(
    export_format: ExportFormat,
    folder: Path,
    request: ExportRequest,
    prepared: PreparedExport,
    settings: ExportSettings,
    dtype: str,
    progress: ProgressDisplay,
) -> tuple[Verification | None, FreshResult, str]:
    """Open the export in a fresh process, compare and time it; the last part says what was left out and why.

    Raises UserError if the export cannot be opened or is not the masked model.
    """
    nothing = FreshResult({}, {})
    if not (settings.verify or settings.speed):
        return None, nothing, "not opened again, as asked for"
    whole = sum(parameter.numel() for parameter in request.base.model.parameters())
    needed = 4 * max(whole, prepared.parameters)
    timed = prepared.bytes + prepared.bytes * whole // max(prepared.parameters, 1)
    free = int(_SHARE_OF_FREE * psutil.virtual_memory().available)
    verify, speed = settings.verify and needed <= free, settings.speed and timed <= free
    left_out = []
    if settings.verify and not verify:
        left_out.append(f"not compared with the masked model: that needs {needed / 2**30:.1f} GiB in float32")
    if settings.speed and not speed:
        left_out.append(f"not timed: that needs {timed / 2**30:.1f} GiB")
    skipped = f"{' and '.join(left_out)}, and {free / 2**30:.1f} GiB are free" if left_out else ""
    if not (verify or speed):
        return None, nothing, skipped
    prompts = random_prompts(request.hf_config)
    positions = int(getattr(request.hf_config, "max_position_embeddings", None) or _PREFILL + _DECODE)
    lengths = {"prefill": min(_PREFILL, positions), "vocabulary": request.hf_config.vocab_size}
    lengths["decode"] = max(min(_DECODE, positions - lengths["prefill"] // 8), 1)
    base = model_folder(request.model.config.path, request.model.config.revision)
    run = FreshRun(
        loader=export_format.loader,
        folder=folder,
        base=str(base),
        dtype=dtype,
        prompts=prompts if verify else None,
        speed=lengths if speed else None,
    )
    with progress.phase("opening the export in a fresh process"):
        [fresh] = run_fresh([run])
    if not verify:
        return None, fresh, skipped
    with progress.phase("running the masked model"):
        whole_config = request.model.config.model_copy(update={"dtype": "float32", "weights": "resident"})
        expected = run_masked(load_frozen(whole_config), request, prompts)
    found = compare_outputs(expected, fresh.outputs)
    if not found.is_equal:
        raise UserError(
            f"--format {export_format.name}: the export, opened in a fresh process, differs from the masked model by "
            f"{found.largest_difference:.2g} in a logit, more than {found.tolerance:.2g}, and was not kept; please report it, "
            "with what `bigcircuit env` prints"
        )
    return found, fresh, skipped
