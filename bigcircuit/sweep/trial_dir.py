"""Folder of a trial: a run folder, as `prune` writes it for the trial's config, with trial.json beside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigcircuit.config.schema import Config
from bigcircuit.io import checkpoint
from bigcircuit.io.checkpoint import SavedState
from bigcircuit.io.files import remove, write_json
from bigcircuit.io.run_dir import MetricsFile, RunDir, read_metrics, write_config
from bigcircuit.results.trial_record import TrialRecord
from bigcircuit.train.final_circuits import RunResult


class TrialDir:
    """Writes and reads the folder of one trial; keeps `record.step` and `record.steps` up to date."""

    def __init__(self, folder: Path, record: TrialRecord) -> None:
        self.run, self.record = RunDir(folder), record
        self._metrics: MetricsFile | None = None

    def save_record(self) -> None:
        """Write trial.json."""
        write_json(self.run.path / "trial.json", self.record.as_json())

    def begin(self, config: Config, command: Sequence[str]) -> SavedState | None:
        """Write config.json and truncate the metrics to the newest checkpoint. Returns its state; None: start at step 0."""
        self.save_config(config, command)
        state = self.newest_checkpoint()
        self._truncate_metrics(state)
        self.record.steps = config.train.steps
        return state

    def restore(self, state: SavedState, count: int) -> None:
        """Replace checkpoint and metrics from the state's step on by the state, which may be another trial's.

        count: checkpoints to keep.
        """
        remove(self.run.checkpoints / f"step-{state.data['step']:06d}")
        self.save_checkpoint(state, count)
        self._truncate_metrics(state)
        self.save_record()

    def _truncate_metrics(self, state: SavedState | None) -> None:
        """Drop the rows of the metrics after a state, all without one, and set the record's step."""
        step, validated = (0, 0) if state is None else (state.data["step"], state.data["validated"])
        self._metrics = MetricsFile(self.run, step, validated)
        self.record.step = step

    def save_config(self, config: Config, command: Sequence[str]) -> None:
        """Write config.json."""
        self.run.config.unlink(missing_ok=True)
        write_config(self.run, config, command)

    def validations(self) -> list[dict[str, Any]]:
        """Return the rows of the metrics that hold a validation."""
        return [row for row in read_metrics(self.run.metrics) if "validation.kl" in row]

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to the metrics."""
        if rows and self._metrics is not None:
            self._metrics.write(rows)

    def newest_checkpoint(self, folder: Path | None = None) -> SavedState | None:
        """Read the newest checkpoint of the trial, or of another folder; None if there is none."""
        return checkpoint.load_newest(folder or self.run.checkpoints, lambda _: None)

    def save_checkpoint(self, state: SavedState, count: int, folder: Path | None = None) -> None:
        """Write a checkpoint, to the trial's or another folder, and remove all but the last `count`."""
        checkpoint.save(folder or self.run.checkpoints, state.data["step"], state, count)

    def write_result(self, found: RunResult) -> None:
        """Write the files of a finished run but its report: circuit, examples and, last, the summary."""
        found.circuits[0].save(self.run.circuit("0", 1))
        write_json(self.run.examples, {"members": found.examples})
        write_json(self.run.summary, found.summary(["circuit.safetensors"], self.record.seconds))
