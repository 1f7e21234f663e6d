"""The usual observers of a run: metrics, progress, curves. They are made on rank 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpidl.errors import PlatformError, wrap
from mpidl.observe.metrics import MetricsLog, read_metrics
from mpidl.observe.plot import plot_run
from mpidl.observe.progress import Progress
from mpidl.task import is_share
from mpidl.train.events import EvaluationRecord, Observer, Result, RunStart, StepRecord

METRICS = "metrics.jsonl"


class MetricsObserver(Observer):
    """Writes metrics.jsonl and TensorBoard events.

    Args:
        folder: The output folder of the run.
        log_every: Steps between records.
    """

    def __init__(self, folder: Path, log_every: int) -> None:
        self._folder = folder
        self._every = log_every
        self._log: MetricsLog | None = None

    def _add(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.add(kind, step, values)

    def run_started(self, start: RunStart) -> None:
        """Open the files; a resumed run says so, since its next steps replace earlier records."""
        self._log = MetricsLog(self._folder)
        if start.step:
            self._add("resume", start.step, {"ranks": start.ranks})

    def step_finished(self, record: StepRecord) -> None:
        """Write the first step, and then every few."""
        if record.step % self._every == 0 or record.step == 1:
            values = {"epoch": record.epoch, "loss": record.loss, **record.metrics}
            values["lr"] = record.lr
            self._add("step", record.step, values | asdict(record.totals))

    def evaluated(self, record: EvaluationRecord) -> None:
        """Write every evaluation."""
        self._add("evaluation", record.step, record.result.record() | asdict(record.totals))

    def close(self) -> None:
        """Close the files."""
        if self._log is not None:
            self._log.close()


class ProgressObserver(Observer):
    """Shows a bar on a terminal, else a line now and then, and says what happens."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def run_started(self, start: RunStart) -> None:
        """Show the bar."""
        self._bar = Progress(start.total_samples, "samples", initial=start.seen)

    def step_finished(self, record: StepRecord) -> None:
        """Move the bar."""
        if self._bar is not None:
            note = f"epoch {record.epoch + 1}/{record.epochs} loss {record.loss:.4f}"
            self._bar.advance(record.samples, note)

    def evaluated(self, record: EvaluationRecord) -> None:
        """Say the result."""
        self._say(f"epoch {record.epoch}/{record.epochs}: test {record.result.describe()}")

    def stopping(self, step: int) -> None:
        """Say that the run ends early."""
        self._say(f"asked to stop by a signal: saving at step {step}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.say(text)

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()


class CurvesObserver(Observer):
    """Draws training.png from the metrics of the whole run at its end.

    Args:
        folder: The output folder of the run.
        title: Of the picture.
        say: Told where there can be no picture.
    """

    def __init__(self, folder: Path, title: str, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._title = title
        self._say = say

    def run_finished(self, result: Result) -> None:
        """Draw. The run is done and saved: a picture is no reason to call it failed."""
        try:
            records = read_metrics(self._folder / METRICS)
            path, percent = self._folder / "training.png", is_share(result.metric)
            plot_run(records, path, self._title, result.metric, percent=percent)
        except (OSError, PlatformError) as error:
            self._say(f"note: the curves could not be drawn: {wrap(error, 'drawing')}")
