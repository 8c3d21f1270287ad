"""The folder of a trial: that of the run which its config describes, with a trial.json beside."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bigcircuit.config.schema import Config
from bigcircuit.io import checkpoint
from bigcircuit.io.checkpoint import State
from bigcircuit.io.files import remove, write_json
from bigcircuit.io.run_dir import MetricsFile, RunDir, write_config
from bigcircuit.results.trial_record import TrialRecord
from bigcircuit.train.final_circuits import RunResult


class TrialDir:
    """Writes and reads the folder of one trial."""

    def __init__(self, folder: Path, record: TrialRecord) -> None:
        self.run, self.record = RunDir(folder), record
        self._metrics: MetricsFile | None = None

    def save(self) -> None:
        """Write trial.json."""
        write_json(self.run.path / "trial.json", asdict(self.record))

    def begin(self, config: Config, command: Sequence[str]) -> State | None:
        """Write config.json and return the state to go on from, if there is one; later lines of the metrics are dropped."""
        self.configure(config, command)
        state = self.newest()
        self._cut(state)
        self.record.steps = config.train.steps
        return state

    def go_back(self, state: State, count: int) -> None:
        """Go on from this state, which may be another trial's, in place of what this one had from that step on."""
        remove(self.run.checkpoints / f"step-{state.data['step']:06d}")
        self.keep(state, count)
        self._cut(state)
        self.save()

    def _cut(self, state: State | None) -> None:
        step, validated = (0, 0) if state is None else (state.data["step"], state.data["validated"])
        self._metrics = MetricsFile(self.run, step, validated)
        self.record.step = step

    def configure(self, config: Config, command: Sequence[str]) -> None:
        """Write config.json."""
        self.run.config.unlink(missing_ok=True)
        write_config(self.run, config, command)

    def validations(self) -> list[dict[str, Any]]:
        """The lines of the metrics that hold a validation."""
        return [row for row in MetricsFile.read_from(self.run) if "validation.kl" in row]

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add lines to the metrics."""
        if rows and self._metrics is not None:
            self._metrics.write(rows)

    def newest(self, folder: Path | None = None) -> State | None:
        """The newest checkpoint, here or in another folder."""
        return checkpoint.newest(folder or self.run.checkpoints, lambda _: None)

    def keep(self, state: State, count: int, folder: Path | None = None) -> None:
        """Write a checkpoint, here or in another folder, and drop all but the last `count`."""
        checkpoint.save(folder or self.run.checkpoints, state.data["step"], state, count)

    def finish(self, found: RunResult) -> None:
        """Write the files a finished run has, but the report. The summary comes last."""
        found.circuits[0].save(self.run.circuit("0", 1))
        write_json(self.run.examples, {"members": found.examples})
        write_json(self.run.summary, found.summary(["circuit.safetensors"], self.record.seconds))
