"""Predictions of one model: files in, a file out, as often as wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpidl.comm.context import Context
from mpidl.errors import ConfigError
from mpidl.inference.output import HDF5, check_size, check_target, convert, count_labels
from mpidl.inference.outputs import choose_outputs
from mpidl.inference.predict import Predictor
from mpidl.inference.samples import Samples, identify, open_samples
from mpidl.inference.sharded import Begin, Prediction, Result, layout_of, predict
from mpidl.train.build import build_loss
from mpidl.train.signals import StopRequest


@dataclass(frozen=True)
class Settings:
    """What a user can say of predictions.

    Attributes:
        outputs: NAME or NAME:ARGUMENT each; none: what the task predicts.
        metrics: Compare with the targets.
        overwrite: Replace existing files.
        source: Options of `open_source`, for raw files.
    """

    outputs: Sequence[str] = ()
    metrics: bool = False
    overwrite: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a prediction.

    Attributes:
        result: Of its chunks.
        per_class: Samples of each predicted class, where each sample has one.
    """

    result: Result
    per_class: list[int] | None = None


class Job:
    """A model and what is wanted of it. Collective.

    Args:
        predictor: The model.
        settings: What is wanted.
        context: The ranks.

    Raises:
        ConfigError: The model has no such output.
    """

    def __init__(self, predictor: Predictor, settings: Settings, context: Context) -> None:
        self.predictor = predictor
        self.settings = settings
        self.context = context
        with context.fail_together("choosing what is written"):
            outputs = choose_outputs(settings.outputs, predictor)
            loss = None
            if settings.metrics:
                loss = build_loss(predictor.config.loss, predictor.task, predictor.ops)
            self._prediction = Prediction(predictor, outputs, loss, context)

    def run(
        self,
        paths: Sequence[Path],
        out: Path,
        stop: StopRequest,
        *,
        restart: bool = False,
        begin: Begin = lambda layout, done: lambda count: None,
    ) -> Outcome:
        """Predict. Collective.

        Args:
            paths: A data set, or raw files.
            out: The file to write; its suffix is one of `output.SUFFIXES`.
            stop: Says whether a signal has arrived.
            restart: Leave what an interrupted run has written.
            begin: Called before the first sample.

        Raises:
            DataError: Samples cannot be read, or the file cannot be written.
            ConfigError: There is such a file, or it cannot be.
        """
        context, settings = self.context, self.settings
        context.on_root(lambda: self._check(out), f"checking {out}")
        samples = open_samples(
            paths,
            self.predictor.task,
            context,
            scored=settings.metrics,
            options=settings.source,
        )
        try:
            return self._run(paths, samples, out, stop, restart=restart, begin=begin)
        finally:
            samples.close()

    def _run(
        self,
        paths: Sequence[Path],
        samples: Samples,
        out: Path,
        stop: StopRequest,
        *,
        restart: bool,
        begin: Begin,
    ) -> Outcome:
        with self.context.fail_together("preparing the prediction"):
            data = identify(paths, self.settings.source)
            layout = layout_of(self._prediction, samples, data)
            check_size(out, layout.samples * layout.row_bytes)
        file = hdf5_beside(out)
        result = predict(
            self._prediction,
            samples,
            file,
            layout,
            stop,
            restart=restart,
            overwrite=self.settings.overwrite,
            begin=begin,
        )
        if not result.complete:
            return Outcome(result)
        columns = list(layout.columns)
        per_class = self.context.on_root(
            lambda: self._conclude(out, file, columns), f"finishing {out}"
        )
        return Outcome(result, per_class)

    def _check(self, out: Path) -> None:
        """Refuse a file that cannot be written, before any work."""
        check_target(out)
        for path in {out, hdf5_beside(out)}:
            if path.exists() and not self.settings.overwrite:
                raise ConfigError(
                    "exists already",
                    where=str(path),
                    remedy="choose another --out, or add --overwrite",
                )

    def _conclude(self, out: Path, file: Path, columns: list[str]) -> list[int] | None:
        """Count the predicted classes, and turn the file into a table where one is wanted."""
        per_class = count_labels(file, self.predictor.spec.target.classes or 0)
        if file != out:
            convert(file, out, columns, overwrite=self.settings.overwrite)
            file.unlink()
        return per_class


def hdf5_beside(out: Path) -> Path:
    """The HDF5 file that ranks fill; a table is made of it at the end."""
    return out if out.suffix == HDF5 else out.with_name(out.name + HDF5)
