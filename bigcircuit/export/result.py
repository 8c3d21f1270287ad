"""What an export has found, as export.json and as lines on the terminal."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigcircuit.evaluation.open_circuits import LoadedCircuit
from bigcircuit.export.formats import ExportFormat
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.rescore import ScoredAs
from bigcircuit.export.verify import FreshResult, Verification
from bigcircuit.gates.discretise import count
from bigcircuit.io.files import file_sha256, write_json
from bigcircuit.io.provenance import versions
from bigcircuit.metrics.registry import SCORES, is_on_text, match_of
from bigcircuit.model.weight_files import weight_files

EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class ExportResult:
    """An export: what was written, and how it compares with the masked model and with the base."""

    format: str
    loads_in: str
    output: str
    circuit: str
    circuit_sha256: str
    model: str
    adapter: str
    """Adapter that was merged; empty without one."""
    ablation: str
    kept: dict[str, int]
    """Nodes of the circuit, by granularity and as `total` site neurons."""
    sizes: list[str]
    dtype: str
    parameters: int
    base_parameters: int
    bytes: int
    """Of the weights on disk."""
    base_bytes: int
    scores: list[dict[str, Any]]
    """The circuit as it was found, and as it is written, on the held-out pairs; empty where both are the same."""
    verification: dict[str, Any] | None
    speed: dict[str, dict[str, float]]
    """`exported` and `base` -> tokens per second of `prefill` and `decode`."""
    not_done: str
    """Which part of the verification was left out, and why; empty for none."""
    notes: list[str]
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        export_format: ExportFormat,
        output: Path,
        loaded: LoadedCircuit,
        request: ExportRequest,
        prepared: PreparedExport,
        scored: Sequence[ScoredAs],
        verification: Verification | None,
        fresh: FreshResult,
        skipped: str,
        dtype: str,
        folder: Path,
    ) -> "ExportResult":
        """Collect the parts. folder: where the export is until it takes its place."""
        config = request.model.config
        return cls(
            format=export_format.name,
            loads_in=export_format.loads_in,
            output=str(output),
            circuit=loaded.path.name,
            circuit_sha256=file_sha256(loaded.path),
            model=config.path,
            adapter=config.adapter or "",
            ablation=request.ablation.name,
            kept=count(request.masks),
            sizes=list(prepared.sizes),
            dtype=dtype,
            parameters=prepared.parameters,
            base_parameters=sum(parameter.numel() for parameter in request.base.model.parameters()),
            bytes=sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")),
            base_bytes=sum(path.stat().st_size for path in weight_files(config)),
            scores=[{"what": row.what} | {name: asdict(score) for name, score in row.scores.items()} for row in scored],
            verification=None if verification is None else verification._asdict(),
            speed=fresh.speed,
            not_done=skipped,
            notes=list(prepared.notes),
            versions=versions(),
        )


def save_export_result(path: Path, result: ExportResult) -> None:
    """Write export.json."""
    write_json(path, json.loads(json.dumps(asdict(result))))


def result_lines(result: ExportResult) -> list[str]:
    """Describe an export for the terminal, a line each."""
    lines = [
        f"{result.output}: {result.format}, {', '.join(result.sizes)}",
        f"parameters {result.parameters:,} of {result.base_parameters:,}, bytes {result.bytes:,} of {result.base_bytes:,} "
        f"({result.bytes / max(result.base_bytes, 1):.2f} x), {result.dtype}",
    ]
    for row in result.scores:
        kl, match, unit = row["kl"], match_of(row), "text" if is_on_text(row) else "pairs"
        lines.append(
            f"held-out {unit}, {row['what']}: KL {kl['mean']:.4f} [{kl['low']:.4f}, {kl['high']:.4f}] nats, "
            f"{SCORES[match].long} {row[match]['mean']:.3f}"
        )
    if found := result.verification:
        lines.append(
            f"opened in a fresh process: logits differ from the masked model by {found['largest_difference']:.1g} at most (allowed "
            f"{found['tolerance']:.1g}), {found['same_tokens']} of {found['tokens']} greedy tokens are equal"
        )
    if result.speed:
        exported, base = result.speed["exported"], result.speed["base"]
        lines.append(
            "; ".join(
                f"{name} {exported[name]:,.0f} tokens/s, the base {base[name]:,.0f} ({exported[name] / base[name]:.2f} x)"
                for name in exported
            )
        )
    lines += [f"note: {note}" for note in [*result.notes, *([result.not_done] if result.not_done else [])]]
    return [*lines, f"loads in {result.loads_in}; all figures are in {result.output}/{EXPORT_FILE}"]
