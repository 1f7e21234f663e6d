"""The loop of a run, as its observers see it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.config import build_config
from mpidl.data.formats.source import Source
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.train.events import EvaluationRecord, Observer, Result, RunStart, StepRecord
from mpidl.train.trainer import Trainer

SAMPLES, BATCH = 50, 12  # five steps an epoch, the last one smaller


class Recorder(Observer):
    """Notes all events; asks for a stop after `stop_after` steps."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.events: list[str] = []
        self.steps: list[StepRecord] = []
        self.stop_after = stop_after

    @property
    def stop_requested(self) -> bool:
        return len(self.steps) >= self.stop_after

    def run_started(self, start: RunStart) -> None:
        self.events.append(f"start at {start.step} of {start.total_samples}")

    def epoch_started(self) -> None:
        self.events.append("epoch")

    def step_finished(self, record: StepRecord) -> None:
        self.steps.append(record)

    def epoch_finished(self) -> None:
        self.events.append(f"{len(self.steps)} steps")

    def evaluated(self, record: EvaluationRecord) -> None:
        self.events.append(f"evaluated {record.result.samples}")

    def stopping(self, step: int) -> None:
        self.events.append(f"stopping at {step}")

    def run_finished(self, result: Result) -> None:
        self.events.append("finished")

    def close(self) -> None:
        self.events.append("closed")


class SlowStart(Observer):
    def run_started(self, start: RunStart) -> None:
        time.sleep(0.5)


class Failing(Observer):
    def step_finished(self, record: StepRecord) -> None:
        raise RuntimeError("a bug")


@pytest.fixture
def folder(tmp_path: Path, context: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((SAMPLES, 4)).astype(np.float32),
        "label": rng.integers(0, 3, SAMPLES),
    }
    source = Source(
        SAMPLES, lambda low, high: {name: array[low:high] for name, array in arrays.items()}
    )
    write_dataset(source, tmp_path / "data", WriteOptions(1), context, lambda count: None)
    return tmp_path


def run(folder: Path, context: Any, *observers: Observer) -> Result:
    data = str(folder / "data")
    tree = {
        "data": {"train": data, "test": data},
        "model": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 2, "global_batch": BATCH, "output": str(folder / "run")},
    }
    trainer = Trainer(build_config(tree, "test"), context, observers=list(observers))
    trainer.prepare(overwrite=True)
    try:
        return trainer.run()
    finally:
        trainer.close()


def test_observers_see_the_run_in_order(folder: Path, context: Any) -> None:
    recorder = Recorder()
    result = run(folder, context, recorder)
    assert recorder.events == [
        "start at 0 of 100",
        *("epoch", "5 steps", "evaluated 50"),
        *("epoch", "10 steps", "evaluated 50"),
        *("finished", "closed"),
    ]
    assert [record.step for record in recorder.steps] == list(range(1, 11))
    assert [record.epoch for record in recorder.steps] == [0] * 5 + [1] * 5
    assert [record.samples for record in recorder.steps] == [12, 12, 12, 12, 2] * 2
    assert recorder.steps[-1].totals.seen == 100 and result.steps == 10 and not result.stopped


def test_an_observer_can_stop_the_run(folder: Path, context: Any) -> None:
    recorder = Recorder(stop_after=3)
    result = run(folder, context, recorder)
    assert "stopping at 4" in recorder.events and recorder.events[-2:] == ["finished", "closed"]
    assert result.stopped and result.steps == 4 and result.checkpoint is not None


def test_the_time_of_a_run_is_that_of_its_loop(folder: Path, context: Any) -> None:
    """Observers import packages and open files at the start, which would look like slow steps."""
    recorder = Recorder()
    result = run(folder, context, SlowStart(), recorder)
    assert recorder.steps[0].totals.seconds < 0.5 and result.seconds < 0.5


def test_observers_are_closed_after_an_error(folder: Path, context: Any) -> None:
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="a bug"):
        run(folder, context, recorder, Failing())
    assert recorder.events[-1] == "closed" and "finished" not in recorder.events
