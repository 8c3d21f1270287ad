"""`bigcircuit recover`: fine-tune an exported model towards its base, top to bottom."""

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import TaskData
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.export.loading import load_exported
from bigcircuit.io.checkpoint import SHARED_FOLDER
from bigcircuit.io.files import file_sha256, read_json, write_json
from bigcircuit.io.provenance import versions
from bigcircuit.io.run_dir import RunDir
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.load import DTYPES, load_frozen
from bigcircuit.model.resolve import ResolvedModel, resolve_model
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.recover.folder import RECOVER_FILE, ExportFolder, check_base, open_export, write_recovered
from bigcircuit.recover.loop import train_export
from bigcircuit.recover.memory import check_memory
from bigcircuit.recover.step import LOWERED_SCORES, BestStep, Models, TextScores, score_windows
from bigcircuit.recover.trainable import make_trainable
from bigcircuit.recover.windows import complete_text, load_text, with_text
from bigcircuit.runtime.progress import ProgressDisplay

_CHANGEABLE = ("save_every",)
"""Settings that do not affect the result."""


class _Checked(NamedTuple):
    """Export and base, checked, before weights are loaded."""

    export: ExportFolder
    base: ResolvedModel
    settings: RecoverSettings
    config: Config
    """Model and text, as of a task."""
    text: TaskData
    """Windows to train on and held-out ones; blank where the base will write them."""
    fingerprint: dict[str, str]
    """What a checkpoint is known by."""


def recover(
    names: Sequence[str], settings: RecoverSettings, ranks: Ranks, overrides: Mapping[str, Any] | None = None
) -> Path:
    """Fine-tune an exported model and write a folder that loads as the export does.

    names: one folder that `bigcircuit export` wrote; overrides: dotted keys of `model` (of the base), `deepspeed` and `output`,
    which is by default the export's name with `-recovered`. The same command resumes. Returns the folder. Raises UserError for
    mistakes of the user, before weights are loaded wherever possible, and DivergedError if a loss is not finite.
    """
    progress = ProgressDisplay(ranks.is_first, ranks.set_status)
    with progress.phase("reading the export"):
        opened = _open(names, settings, overrides or {}, progress)
    path = Path((overrides or {}).get("output") or f"{opened.export.path}-recovered")
    if path.resolve() == opened.export.path.resolve():
        raise UserError(f"--output {path}: is the export itself; name another folder")
    ranks.check_equal({**opened.fingerprint, "versions": json.dumps(versions())})
    folder = RunDir(path)
    is_finished = _is_finished(path, opened)
    ranks.check_equal({"state of the output folder": f"{path.name} {is_finished}"}, SHARED_FOLDER)
    if is_finished:
        progress.print_line(f"{path} holds a finished recovery with these settings; nothing to do")
        return path
    for note in opened.text.notes:
        progress.print_line(f"note: {note}")
    ranks.barrier()  # every rank has looked at the folder before the first writes to it
    with folder.locked() if ranks.is_first else nullcontext():
        if ranks.is_first:
            if _is_finished(path, opened):  # again: another process may have used the folder since
                raise UserError(f"{path}: another process has finished this recovery meanwhile; nothing is left to do")
            write_json(path / RECOVER_FILE, _settings_content(opened))
        _run(opened, folder, ranks, progress)
    return path


def _open(
    names: Sequence[str], settings: RecoverSettings, overrides: Mapping[str, Any], progress: ProgressDisplay
) -> _Checked:
    """Read and check all but the weights. Raises UserError."""
    if len(names) != 1:
        raise UserError("recover needs one exported folder: bigcircuit recover small --recover.generate 200")
    export = open_export(Path(names[0]))
    config = with_text(settings, {**{f"model.{key}": value for key, value in export.base.items()}, **overrides})
    base = resolve_model(config.model, config.deepspeed)
    if base.deepspeed is not None:
        raise UserError(
            f"deepspeed {config.deepspeed}: ZeRO stage 3 divides frozen weights, and recover trains weights that every rank holds; "
            "give a config of a lower stage, such as zero2, or leave it out"
        )
    if base.hf_config.vocab_size != export.hf_config.vocab_size:
        raise UserError(
            f"model.path {config.model.path}: has {base.hf_config.vocab_size} tokens and {export.path} has "
            f"{export.hf_config.vocab_size}; give the model that was exported"
        )
    check_base(export, base)
    text = load_text(config, base)
    check_memory(export, base, settings)
    plain = {key: value for key, value in _plain(settings).items() if key not in _CHANGEABLE}
    known = {
        "settings": hashlib.sha256(json.dumps(plain | {"text": ""}, sort_keys=True).encode()).hexdigest(),
        "text": text.sha256,
        "export": hashlib.sha256("".join(map(file_sha256, export.files)).encode()).hexdigest(),
        **{f"base {part}": value for part, value in fingerprint(base.config, progress).items()},
    }
    return _Checked(export=export, base=base, settings=settings, config=config, text=text, fingerprint=known)


def _plain(settings: RecoverSettings) -> dict[str, Any]:
    return {**settings.model_dump(mode="json"), "lr": settings.highest_rate}


def _settings_content(opened: _Checked) -> dict[str, Any]:
    return {
        "export": str(opened.export.path),
        "base": {key: value for key, value in opened.base.config.model_dump(mode="json").items() if value is not None},
        "settings": _plain(opened.settings),
        "fingerprint": opened.fingerprint,
        "command": sys.argv,
        "versions": versions(),
    }


def _is_finished(path: Path, opened: _Checked) -> bool:
    """Whether the output holds this recovery, complete. Raises UserError if it holds something else."""
    file = path / RECOVER_FILE
    if not file.exists():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"--output {path}: holds other files and no recovery; name another folder")
        return False
    found = read_json(file, "name another folder with --output", "fingerprint")
    before = found["fingerprint"]
    if different := [key for key, value in opened.fingerprint.items() if before.get(key) != value]:
        raise UserError(f"{path}: holds a recovery with another {different[0]}; name another folder with --output")
    return "after" in found


def _run(opened: _Checked, folder: RunDir, ranks: Ranks, progress: ProgressDisplay) -> None:
    """Load, train, and write."""
    settings, export = opened.settings, opened.export
    with progress.phase("loading weights"):
        frozen = load_frozen(opened.base.config, ranks.device)
        base = frozen.model
        dtype = torch.float32 if settings.train == "rows" else DTYPES[export.dtype]
        model = load_exported(export.path, dtype=dtype).eval().to(ranks.device)
    micro_batches = MicroBatches(settings.micro_batch_size, ranks, progress=progress)
    text = complete_text(opened.config, frozen, opened.text, micro_batches)
    ranks.check_equal({"windows": text.tokens_sha256})
    division = {"text_sha256": text.sha256, "held_out_sha256": text.held_out_sha256}
    export.check_division(division)
    held_out = text.splits["test"]
    with progress.phase("scoring before"):
        of_base = score_windows(base, base, held_out, settings, ranks)
        before = score_windows(model, base, held_out, settings, ranks)
    for name, found in ((f"model.path {opened.base.config.path}", of_base), (str(export.path), before)):
        if not all(map(math.isfinite, (*found.perplexity, *found.kl))):
            raise UserError(f"{name}: its logits are not finite on held-out text before any update; give other weights")
    trained = make_trainable(model, opened.base.skeleton.path, settings)
    count = sum(one.parameter.numel() for one in trained.trained)
    progress.print_line(
        f"{export.path}: {export.format}; {count:,} parameters are trained ({settings.train}), "
        f"{' + '.join(str(len(text.splits[name])) for name in ('train', 'validation', 'test'))} windows of up to "
        f"{settings.tokens} tokens to train on, to choose the step by, and held out"
    )
    if settings.validation and not text.splits["validation"]:
        progress.print_line(
            "note: no text is left to choose the step by, so the last step's weights are written; give more documents, or rows "
            "with split validation"
        )
    best = train_export(
        trained, Models(trained.model, base), text, settings, opened.fingerprint, folder, ranks, progress
    )
    with progress.phase("merging and scoring after"):
        done = export.rounded(trained.merged() if settings.merge else trained.model)
        after = score_windows(done, base, held_out, settings, ranks)
    scores = {name: one._asdict() for name, one in (("base", of_base), ("before", before), ("after", after))}
    if not ranks.is_first:
        return
    compared = write_recovered(folder.path, export, trained, done, settings, {**division, **scores}, progress)
    results = {**scores, **_best_content(best), "trained_parameters": count, **compared}
    write_json(folder.path / RECOVER_FILE, {**_settings_content(opened), **results})
    for line in _lines(folder.path, {"the base": of_base, "before": before, "after": after}):
        progress.print_line(line)
    score = LOWERED_SCORES[settings.loss]
    was, now = (getattr(one, score)[0] for one in (before, after))
    remedy = f"give more text than these {len(text.splits['train'])} windows (recover.generate, recover.text), fewer "
    remedy += "recover.steps, or a lower recover.lr"
    if best is not None and not best.step:
        progress.print_line(
            f"note: no step lowered {score} of validation text, so the export is written as it was; {remedy}"
        )
    elif best is not None:
        progress.print_line(
            f"the weights of step {best.step} of {settings.steps} are written: {score} of validation text {best.score:.4g}"
        )
    if now > was:
        progress.print_line(f"note: {score} of held-out text rose from {was:.4g} to {now:.4g}; {remedy}")


def _best_content(best: BestStep | None) -> dict[str, Any]:
    return {} if best is None else {"best_step": best.step, "validation": best.score}


def _lines(path: Path, scores: dict[str, TextScores]) -> list[str]:
    """Describe the scores for the terminal."""

    def shown(values: tuple[float, float, float], digits: int) -> str:
        value, low, high = (f"{number:.{digits}f}" for number in values)
        return f"{value} [{low}, {high}]"

    lines = [
        f"held-out text, {what}: perplexity {shown(one.perplexity, 3)}"
        + (f", KL to the base {shown(one.kl, 4)} nats" if what != "the base" else "")
        for what, one in scores.items()
    ]
    return [*lines, f"{path}: loads as the export does; all figures are in {path / RECOVER_FILE}"]
