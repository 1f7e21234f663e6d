"""The step of training: equal to the loop written by hand, and what it does beyond that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import DataError, NumericsError
from mpidl.nn import CrossEntropy, Dense, Dropout, Model, MSELoss
from mpidl.optim import SGD
from mpidl.sync import AllReduce, LocalSGD, StepScalars
from mpidl.train.engine import StepBatch, StepOptions, TrainingStep
from mpidl.train.events import Observer

SAMPLES = 12


def build(*more: Any) -> Model:
    model = Model([Dense(16, relu=True), *more, Dense(3)], (5,), NumpyOps())
    model.parameters.initialize(3)
    return model


def make(model: Model, context: Any, strategy: Any = AllReduce, **options: Any) -> TrainingStep:
    observers = options.pop("observers", ())
    loss = options.pop("loss", CrossEntropy)(model.ops)
    made = strategy(model.parameters, context)
    made.start()
    optimizer = SGD(model.parameters, model.ops, momentum=0.9)
    return TrainingStep(model, loss, made, optimizer, context, StepOptions(**options), observers)


def samples(step: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(step)
    x = rng.standard_normal((SAMPLES, 5)).astype(np.float32)
    return x, rng.integers(0, 3, SAMPLES)


def batches(cuts: Sequence[int] = (), count: int = 100) -> Iterator[StepBatch]:
    """Batches cut into micro-batches; an empty one is None."""
    for step in range(count):
        x, y = samples(step)
        pieces = zip(np.split(x, cuts), np.split(y, cuts), strict=True)
        yield StepBatch([pair if len(pair[1]) else None for pair in pieces], SAMPLES, SAMPLES)


def test_a_step_equals_the_loop_written_by_hand(context: Any) -> None:
    model, other = build(), build()
    step, feed = make(model, context), batches()
    loss, optimizer = CrossEntropy(other.ops), SGD(other.parameters, other.ops, momentum=0.9)
    for number in range(5):
        sums = step.run(feed, 0.1, step=number)
        x, y = samples(number)
        outputs, backward = other.forward(x, train=True)
        result = loss(outputs, y, SAMPLES)
        backward(result.gradient, None)
        optimizer.step(0.1)
        assert (sums.loss, sums.correct) == (np.float32(result.total), result.correct)
        assert sums.count == SAMPLES and not sums.failed and not sums.stop
        np.testing.assert_array_equal(model.parameters.values, other.parameters.values)


@pytest.mark.parametrize("cuts", [(6,), (3, 6, 9), (0, 6, 6), (12,)])
def test_micro_batches_add_up_to_the_batch(context: Any, cuts: tuple[int, ...]) -> None:
    model, other = build(), build()
    step = make(model, context, micro_batches=len(cuts) + 1)
    whole = make(other, context)
    feed, single = batches(cuts), batches()
    for number in range(3):
        sums, wanted = step.run(feed, 0.1, step=number), whole.run(single, 0.1, step=number)
        assert sums.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert (sums.correct, sums.count) == (wanted.correct, wanted.count)
    np.testing.assert_allclose(
        model.parameters.values, other.parameters.values, rtol=1e-4, atol=1e-6
    )


def test_gradients_are_clipped(context: Any) -> None:
    model = build()
    before = model.parameters.values.copy()
    make(model, context, clip_norm=1e-3).run(batches(), 1.0)
    moved = float(np.linalg.norm(model.parameters.values - before))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_random_layers_draw_anew_in_each_step(context: Any) -> None:
    model = build(Dropout(0.5))
    step = make(model, context)
    losses = []
    for number in (0, 1, 0):
        model.parameters.initialize(3)
        losses.append(step.run(batches(), 0.0, step=number).loss)
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("strategy", [AllReduce, LocalSGD])
def test_a_loss_that_is_not_finite_names_the_parameter(context: Any, strategy: Any) -> None:
    model = build()
    step = make(model, context, strategy)
    step.run(batches(), 0.1)
    model.parameters.value("dense2.bias")[0] = np.nan
    with pytest.raises(NumericsError, match=r"at step 2; parameter dense2\.bias is not finite"):
        for number in range(1, 10):  # local SGD says so where the ranks meet
            step.run(batches(), 0.1, step=number)


def test_an_error_in_making_a_batch_is_one_of_the_step(context: Any) -> None:
    """And the next step is not spoiled by what was computed before it."""

    def failing() -> Iterator[StepBatch]:
        def micro_batches() -> Iterator[Any]:
            x, y = samples(0)
            yield x[:6], y[:6]
            raise DataError("a bad sample")

        yield StepBatch(micro_batches(), SAMPLES, SAMPLES)

    model, other = build(), build()
    step, wanted = (make(one, context, micro_batches=2) for one in (model, other))
    before = model.parameters.values.copy()
    with pytest.raises(DataError, match="a bad sample") as caught:
        step.run(failing(), 0.1)
    assert caught.value.agreed
    np.testing.assert_array_equal(model.parameters.values, before)
    step.run(batches((6,)), 0.1)
    wanted.run(batches((6,)), 0.1)
    np.testing.assert_array_equal(model.parameters.values, other.parameters.values)


def test_a_stop_is_among_the_sums(context: Any) -> None:
    step = make(build(), context)
    feed = batches()
    assert [step.run(feed, 0.1, stop=stop).stop for stop in (False, True, False)] == [0, 1, 0]


def test_observers_see_each_pass(context: Any) -> None:
    class Recorder(Observer):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def pass_started(self) -> None:
            self.seen.append("started")

        def pass_finished(self, own: StepScalars) -> None:
            self.seen.append(own.count)

    recorder = Recorder()
    step = make(build(), context, observers=(recorder,))
    feed = batches()
    for number in range(2):
        step.run(feed, 0.1, step=number)
    assert recorder.seen == ["started", SAMPLES] * 2


def test_a_regression_takes_the_same_step(context: Any) -> None:
    model = build()
    step = make(model, context, loss=MSELoss)

    def feed() -> Iterator[StepBatch]:
        while True:
            x = samples(0)[0]
            yield StepBatch.whole(x, x[:, :3] * 2)

    endless = feed()
    losses = [step.run(endless, 0.05, step=number).loss for number in range(60)]
    assert losses[-1] < 0.1 * losses[0]
