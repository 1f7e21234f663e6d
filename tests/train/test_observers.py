"""What watches a run: metrics, progress, curves, signals, and the slow rank of comparisons."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from mpidl.observe.metrics import read_metrics
from mpidl.sync import StepScalars
from mpidl.task import Evaluation, FieldSpec, InputSpec, TargetSpec, Task
from mpidl.task.classification import Classification
from mpidl.task.regression import Regression
from mpidl.train.compare import SlowRank, SpeedMeter
from mpidl.train.evaluate import EpochAverage
from mpidl.train.events import EvaluationRecord, Result, RunStart, StepRecord, Totals
from mpidl.train.observers import CurvesObserver, MetricsObserver, ProgressObserver
from mpidl.train.signals import StopRequest

START = RunStart(step=0, ranks=2, total_samples=100, seen=0)
FEATURES = (FieldSpec("x", (4,)),)
LABEL = (FieldSpec("y", ()),)
TASK: Task = Classification(
    Classification.Options(), InputSpec("classification", FEATURES, TargetSpec(LABEL, 3))
)
REGRESSION: Task = Regression(
    Regression.Options(), InputSpec("regression", FEATURES, TargetSpec(LABEL))
)
TOTALS = Totals(seconds=1.0, seen=20, sent_bytes=7)


def known(accuracy: float | None) -> dict[str, float]:
    return {} if accuracy is None else {"accuracy": accuracy}


def record(step: int, accuracy: float | None = 0.5) -> StepRecord:
    return StepRecord(step, 0, 3, 0.25, known(accuracy), 0.1, 10, TOTALS)


def result(accuracy: float | None = 0.5) -> Result:
    metric = "loss" if accuracy is None else "accuracy"
    quality = Evaluation(0.25, 10, known(accuracy))
    return Result(quality, metric, "test", 1, 2, 1.0, 10.0, 2, None, False)


def test_metrics_are_the_first_step_and_every_few(tmp_path: Path) -> None:
    observer = MetricsObserver(tmp_path, log_every=3)
    observer.run_started(START)
    for step in range(1, 8):
        observer.step_finished(record(step))
    observer.evaluated(EvaluationRecord(7, 1, 3, Evaluation(0.2, 5, known(0.9)), TOTALS))
    observer.close()
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [(one["kind"], one["step"]) for one in found] == [
        ("step", 1), ("step", 3), ("step", 6), ("evaluation", 7),
    ]  # fmt: skip
    assert found[0] == {
        "kind": "step", "step": 1, "epoch": 0, "loss": 0.25, "accuracy": 0.5, "lr": 0.1,
        "seconds": 1.0, "seen": 20, "sent_bytes": 7,
    }  # fmt: skip
    assert (found[-1]["accuracy"], found[-1]["samples"], found[-1]["seen"]) == (0.9, 5, 20)


def test_a_regression_has_no_accuracy(tmp_path: Path) -> None:
    observer = MetricsObserver(tmp_path, log_every=1)
    observer.run_started(START)
    observer.step_finished(record(1, accuracy=None))
    observer.evaluated(EvaluationRecord(1, 1, 3, Evaluation(0.2, 5), TOTALS))
    observer.close()
    assert all("accuracy" not in one for one in read_metrics(tmp_path / "metrics.jsonl"))


def test_a_resumed_run_says_so_and_replaces_later_steps(tmp_path: Path) -> None:
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        observer = MetricsObserver(tmp_path, log_every=1)
        observer.run_started(RunStart(start, 2, 100, 10 * start))
        for step in steps:
            observer.step_finished(record(step))
        observer.close()
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [one["step"] for one in found if one["kind"] == "step"] == [1, 2, 3, 4]
    assert [one["ranks"] for one in found if one["kind"] == "resume"] == [2]


def test_progress_says_what_happens(capfd: pytest.CaptureFixture[str]) -> None:
    observer = ProgressObserver()
    observer.close()  # before it has started, as after an early error
    observer.run_started(START)
    observer.step_finished(record(1))
    observer.evaluated(EvaluationRecord(1, 1, 3, Evaluation(0.2, 5, known(0.9)), TOTALS))
    observer.evaluated(EvaluationRecord(2, 2, 3, Evaluation(0.2, 5), TOTALS))
    observer.stopping(2)
    observer.close()
    said = capfd.readouterr().err
    assert "epoch 1/3: test accuracy 90.00 %, loss 0.2000" in said
    assert "epoch 2/3: test loss 0.2000" in said and "asked to stop by a signal" in said


def test_curves_that_cannot_be_drawn_do_not_fail_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    CurvesObserver(tmp_path, "a run", said.append).run_finished(result())
    assert len(said) == 1 and "could not be drawn" in said[0]


@pytest.mark.parametrize("accuracy", [0.5, None])
def test_curves_are_drawn(tmp_path: Path, accuracy: float | None) -> None:
    pytest.importorskip("matplotlib")
    metrics = MetricsObserver(tmp_path, log_every=1)
    metrics.run_started(START)
    for step in range(1, 4):
        metrics.step_finished(record(step, accuracy))
    CurvesObserver(tmp_path, "a run", print).run_finished(result(accuracy))
    metrics.close()
    assert (tmp_path / "training.png").stat().st_size > 0


def test_a_signal_asks_for_a_stop_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    observer = StopRequest()
    observer.run_started(START)
    assert not observer.stop_requested
    os.kill(os.getpid(), signal.SIGUSR1)
    assert observer.stop_requested
    observer.close()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_slow_rank_takes_a_multiple_of_its_time() -> None:
    slow, meter = SlowRank(4.0), SpeedMeter()
    meter.epoch_started()
    slow.pass_started()
    time.sleep(0.02)
    own = StepScalars(count=8)
    slow.pass_finished(own)
    meter.pass_finished(own)
    meter.epoch_finished()
    assert meter.seconds >= 0.08 and meter.samples == 8
    assert meter.speed == 8 / meter.seconds


def test_averages_of_an_epoch_go_on_from_their_state() -> None:
    for task in (TASK, REGRESSION):
        average = EpochAverage(task)
        average.add(9.0, 1.0, 3, first=True)  # of the epoch before
        average.add(4.0, 2.0, 4, first=True)
        resumed = EpochAverage(task)
        resumed.load_state(average.state())
        for one in (average, resumed):
            one.add(2.0, 3.0, 4, first=False)
        assert average.seen == resumed.seen
        wanted = {"accuracy": 0.625} if task is TASK else {}
        assert average.seen == Evaluation(0.75, 8, wanted, 0.625 if wanted else -0.75)


def test_the_better_evaluation_has_the_higher_score() -> None:
    assert TASK.score(0.9, known(0.8)) > TASK.score(0.1, known(0.7))
    assert REGRESSION.score(0.1, {}) > REGRESSION.score(0.2, {})
