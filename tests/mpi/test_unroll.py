"""Models unrolled over several steps, trained on several ranks: strategies see final gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.models import build_layers
from mpidl.nn import FrameLoss, Model, MSELoss, Unrolled
from mpidl.optim import Adam
from mpidl.sync import AllReduce, Zero
from mpidl.train.engine import StepBatch, StepOptions, TrainingStep

pytestmark = pytest.mark.mpi
STEPS, HISTORY, SIZE, BATCH = 3, 2, 5, 8


def train(context: Any, make: Any, micro_batches: int = 1) -> Any:
    """The parameters of the whole model after some steps; each rank has its own part of a batch."""
    shape = (HISTORY * SIZE,)
    layers = build_layers("mlp", shape, SIZE, {"hidden": (40, 30, 20)})
    model = Model(layers, shape, NumpyOps(), input_gradient=True)
    strategy = make(model.parameters)
    optimizer = Adam(strategy.shard, model.ops)
    strategy.initialize(0)
    strategy.start()
    through = Unrolled(model, STEPS, HISTORY)
    options = StepOptions(micro_batches=micro_batches, through=through)
    loss = FrameLoss(MSELoss(model.ops))
    training = TrainingStep(model, loss, strategy, optimizer, context, options)
    for step in range(6):
        rng = np.random.default_rng([step, context.rank])
        x = rng.standard_normal((BATCH, *shape)).astype(np.float32)
        y = rng.standard_normal((BATCH, STEPS, SIZE)).astype(np.float32)
        cuts = np.split(np.arange(BATCH), micro_batches)
        parts = [(x[rows], y[rows]) for rows in cuts]
        batch = StepBatch(parts, BATCH, BATCH * context.size)
        sums = training.run(iter([batch]), 0.01, step=step)
        assert sums.count == BATCH * context.size
    return np.array(strategy.values())


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_computes_what_all_reduce_does(context: Any, stage: int, micro_batches: int) -> None:
    options = Zero.Options(stage=stage, bucket_mib=2000 / 2**20)
    wanted = train(context, lambda parameters: AllReduce(parameters, context))
    got = train(context, lambda parameters: Zero(parameters, context, options), micro_batches)
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_buckets_that_leave_during_backward_hold_final_gradients(context: Any) -> None:
    def overlapping(parameters: Any) -> AllReduce:
        return AllReduce(parameters, context, AllReduce.Options(overlap="layers", bucket_mib=0.001))

    wanted = train(context, lambda parameters: AllReduce(parameters, context))
    np.testing.assert_allclose(train(context, overlapping), wanted, rtol=1e-5, atol=1e-5)
