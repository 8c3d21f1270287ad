"""The loop of `bigcircuit recover`: updates, scores on validation windows, checkpoints."""

from collections.abc import Mapping

import torch

from bigcircuit.data.collate import batch_indices
from bigcircuit.data.dataset import TaskData
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import Stopped, UserError
from bigcircuit.io import checkpoint
from bigcircuit.io.run_dir import MetricsFile, RunDir
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.recover.step import LOWERED_SCORES, BestStep, Models, RecoverState, score_windows, update_export
from bigcircuit.recover.trainable import TrainedModel
from bigcircuit.runtime.progress import ProgressDisplay

_KEPT_CHECKPOINTS = 2


def train_export(
    trained: TrainedModel,
    models: Models,
    text: TaskData,
    settings: RecoverSettings,
    fingerprint: Mapping[str, str],
    folder: RunDir,
    ranks: Ranks,
    progress: ProgressDisplay,
) -> BestStep | None:
    """Run the loop: update, log, score and save when due; what is trained has its values of the best step then.

    Returns the best step, None without validation windows. Raises Stopped, with the state saved.
    """
    windows, validation = text.splits["train"], text.splits["validation"] if settings.validation else []
    state = RecoverState.new(trained.trained)
    saved = checkpoint.load_on_all(folder.checkpoints, progress.print_line, ranks)
    if saved is not None:
        if saved.base != fingerprint:
            raise UserError(f"{folder.checkpoints}: is of another recovery; name another folder with --output")
        state.restore(saved)
        progress.print_line(f"resuming {folder.path} at step {state.step}")
        if (threads := saved.data["threads"]) != torch.get_num_threads():
            progress.print_line(
                f"note: torch used {threads} threads before, so numbers may differ from those of a run in one piece; set "
                f"OMP_NUM_THREADS={threads} for the same bits"
            )

    def save() -> None:
        if ranks.is_first:
            checkpoint.save(folder.checkpoints, state.step, state.export(fingerprint), _KEPT_CHECKPOINTS)

    def validate() -> None:
        """Score the step on the validation windows. A base that no loss asks for is not run."""
        if not validation:
            return
        base = models.base if settings.loss == "kl" else models.export
        scores = score_windows(models.export, base, validation, settings, ranks)
        score = getattr(scores, LOWERED_SCORES[settings.loss])[0]
        state.keep_if_best(score)
        if metrics:
            metrics.write([{"step": state.step, f"validation.{LOWERED_SCORES[settings.loss]}": score}])

    done = state.step if saved is not None else -1  # lines of step 0 are written again without a checkpoint
    metrics = MetricsFile(folder, done, done) if ranks.is_first else None
    with ranks.stop.handling_signals():
        try:
            with progress.phase("recovering", settings.steps, "steps", done=state.step, lasting=True) as updates:
                if saved is None:
                    validate()
                while state.step < settings.steps:
                    chosen = batch_indices(len(windows), settings.batch_size, state.step, settings.seed)
                    state.losses.append(update_export(state, models, [windows[n] for n in chosen], settings, ranks))
                    updates.advance(values={settings.loss: state.losses[-1]})
                    if state.step % settings.log_every == 0 or state.step == settings.steps:
                        if metrics:
                            mean = sum(state.losses) / len(state.losses)
                            metrics.write([{"step": state.step, "loss": mean}])
                        state.losses = []
                    if state.step % settings.validate_every == 0 or state.step == settings.steps:
                        validate()
                    if state.step % settings.save_every == 0 or state.step == settings.steps:
                        save()
                    ranks.stop_if_requested()
        except Stopped:
            save()
            progress.print_line(f"{folder.path}: stopped at step {state.step}, which is saved")
            raise
    state.use_best()
    return state.best
