"""Strategies over real MPI: what they promise about parameters, memory, messages and gradients."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import ConfigError
from mpidl.models import build_layers
from mpidl.nn import CrossEntropy, FlatParameters, Model, ParameterSpec
from mpidl.optim import SGD, Adam, Optimizer
from mpidl.sync import (
    AllReduce,
    AsyncGossip,
    AsynchronousStrategy,
    Gossip,
    Hogwild,
    LocalSGD,
    OneSidedParameterServer,
    ParameterServer,
    RunInfo,
    StepScalars,
    Strategy,
    Zero,
)
from mpidl.train.engine import StepBatch, StepOptions, TrainingStep

pytestmark = pytest.mark.mpi
BATCH = 8


def build(seed: int = 0) -> Model:
    model = Model(build_layers("mlp", (12,), 5, {"hidden": (40, 30, 20)}), (12,), NumpyOps())
    model.parameters.initialize(seed)
    return model


def train(
    context: Any, make: Any, optimizer_of: Any, steps: int, clip: float = 0.0
) -> tuple[Any, Strategy, Optimizer]:
    """The parameters of the whole model after some synchronous steps on a fixed batch."""
    model = build()
    strategy = make(model.parameters)
    optimizer = optimizer_of(strategy.shard, model.ops)
    strategy.initialize(0)
    strategy.start()
    options = StepOptions(clip_norm=clip)
    training = TrainingStep(model, CrossEntropy(model.ops), strategy, optimizer, context, options)
    for step in range(steps):
        rng = np.random.default_rng([step, context.rank])
        x, y = rng.standard_normal((BATCH, 12)).astype(np.float32), rng.integers(0, 5, BATCH)
        sums = training.run(iter([StepBatch.whole(x, y, context.size)]), 0.05, step=step)
        assert sums.count == BATCH * context.size
    return strategy.values(), strategy, optimizer


@pytest.mark.parametrize("optimizer", [SGD, Adam])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_computes_what_all_reduce_does(context: Any, stage: int, optimizer: Any) -> None:
    def zero(parameters: FlatParameters) -> Zero:
        options = Zero.Options(stage=stage, bucket_mib=2000 / 2**20)
        return Zero(parameters, context, options)

    wanted, _, _ = train(
        context, lambda parameters: AllReduce(parameters, context), optimizer, 12, clip=0.5
    )
    got, strategy, made = train(context, zero, optimizer, 12, clip=0.5)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert isinstance(strategy, Zero)
    report = strategy.report()
    share = sum(array.nbytes for array in made.state.values()) / len(made.state)
    pieces = len(strategy.layout.buckets)  # rounding: one element each
    assert abs(share - report["whole_bytes"] / context.size) <= 4 * pieces
    if stage > 1:
        assert abs(report["gradient_bytes"] - report["whole_bytes"] / context.size) <= 4 * pieces
    if stage > 2:
        assert report["parameter_bytes"] == share and strategy.parameters.values.size == 0
        largest = max(bucket.stop - bucket.start for bucket in strategy.layout.buckets) * 4
        assert report["window_bytes"] <= 4 * largest  # two in use, two kept for the next layers
    for (
        array
    ) in made.state.values():  # checkpoints hold it whole, and any number of ranks can take it back
        whole = np.array(strategy.gather_full(array))
        again = np.empty_like(array)
        strategy.load_shard(whole, again)
        np.testing.assert_array_equal(again, array)


def bound(staleness: int | None) -> Any:
    return "unbounded" if staleness is None else staleness


def flat_of(length: int) -> FlatParameters:
    return FlatParameters([ParameterSpec("p", (length,))], NumpyOps())


def test_local_sgd_averages_by_samples(context: Any) -> None:
    parameters = flat_of(30)
    strategy = LocalSGD(parameters, context, LocalSGD.Options(steps=3))
    strategy.start()
    samples = [rank + 1 for rank in range(context.size)]
    for step in range(1, 7):

        def apply() -> None:
            parameters.values += context.rank + 1

        sums = strategy.step(StepScalars(1.0, count=samples[context.rank]), apply)
        assert sums.count == (sum(samples) if step % 3 == 0 else samples[context.rank])
    mean = sum(s * (rank + 1) for rank, s in enumerate(samples)) / sum(samples)
    np.testing.assert_allclose(parameters.values, 6 * mean, rtol=1e-6)
    assert strategy.report()["averages"] == 2


def test_slow_momentum_of_zero_is_plain_averaging(context: Any) -> None:
    results = []
    for options in ({}, {"slow_momentum": 0.0, "slow_rate": 1.0}, {"slow_momentum": 0.5}):
        parameters = flat_of(16)
        strategy = LocalSGD(parameters, context, LocalSGD.Options(steps=2, **options))  # type: ignore[arg-type]
        strategy.start()
        for _ in range(4):
            strategy.step(
                StepScalars(count=1),
                lambda parameters=parameters: parameters.values.__iadd__(context.rank),
            )  # type: ignore[misc]
        results.append(parameters.values.copy())
    np.testing.assert_allclose(results[0], results[1])
    mean = (context.size - 1) / 2
    np.testing.assert_allclose(
        results[2], 4 * mean + 0.5 * 2 * mean, rtol=1e-6
    )  # the second average goes half a stride further


@pytest.mark.parametrize("kind", ["ring", "torus", "exponential", "random", "complete"])
@pytest.mark.parametrize("push_sum", [False, True])
def test_gossip_keeps_the_mean_and_agrees(context: Any, kind: str, push_sum: bool) -> None:
    parameters = flat_of(33)
    options = Gossip.Options(graph=kind, push_sum=push_sum)  # type: ignore[arg-type]
    strategy = Gossip(parameters, context, options, RunInfo(ranks=context.size, seed=5))
    strategy.start()
    parameters.values[:33] = context.rank
    for _ in range(48):
        strategy.step(StepScalars(count=1), lambda: None)
    np.testing.assert_allclose(parameters.values[:33], (context.size - 1) / 2, atol=1e-3)
    strategy.synchronize()
    np.testing.assert_allclose(parameters.values[:33], (context.size - 1) / 2, atol=1e-5)


def test_failures_are_remembered_until_the_ranks_meet(context: Any) -> None:
    parameters = flat_of(4)
    strategy = LocalSGD(parameters, context, LocalSGD.Options(steps=4))
    strategy.start()
    for step in range(1, 5):
        failed = float(context.rank == context.size - 1 and step == 2)
        sums = strategy.step(StepScalars(failed=failed, count=1), lambda: None)
        assert sums.failed == (1 if step == 4 else 0)


def work(strategy: AsynchronousStrategy, gradient: Any, budget: int, pause: Any = None) -> int:
    """One epoch; returns how many steps this rank has done."""
    strategy.begin_epoch(budget)
    done = 0
    strategy.serve()
    while strategy.next_step() is not None:
        strategy.parameters.gradients[...] = gradient
        strategy.apply_gradients(
            0.1, lambda lr: strategy.optimizer.step(lr) if strategy.optimizer else None
        )
        done += 1
        if pause is not None:
            pause(done)
    strategy.end_epoch()
    return done


@pytest.mark.parametrize("staleness", [0, 1, 3, None])
@pytest.mark.parametrize("servers", [1, 2])
def test_a_server_uses_every_gradient_once(
    context: Any, staleness: int | None, servers: int
) -> None:
    """Under random delays the sum of all gradients is in the parameters, once."""
    if servers >= context.size:
        with pytest.raises(ConfigError, match="leave no worker"):
            ParameterServer(flat_of(100), context, ParameterServer.Options(servers=servers))
        return
    parameters = flat_of(100)
    options = ParameterServer.Options(servers=servers, staleness=bound(staleness))
    strategy = ParameterServer(parameters, context, options)
    strategy.optimizer = SGD(strategy.shard, parameters.ops, momentum=0.0)
    strategy.start()
    luck = random.Random(context.rank)

    def pause(done: int) -> None:
        time.sleep(luck.random() * 0.003)

    budget = 30 * strategy.workers
    done = work(strategy, np.ones(parameters.length, np.float32), budget, pause)
    strategy.synchronize()
    counted = context.allgather_object(done, int)
    report = strategy.report()
    assert report["applied"] == sum(counted)
    rounds = sum(counted) / strategy.workers
    np.testing.assert_allclose(parameters.values[:100], -0.1 * rounds, rtol=1e-5)
    if staleness == 0:
        assert counted[: strategy.workers] == [30] * strategy.workers
    if staleness is not None and staleness > 0:
        largest = max(report["staleness"])
        assert largest <= (2 * staleness + 1) * strategy.workers


def test_staleness_zero_is_synchronous(context: Any) -> None:
    """Each round uses the mean of the workers' gradients once: what an all-reduce would do."""
    if context.size == 1:
        return
    parameters = flat_of(50)
    strategy = ParameterServer(parameters, context, ParameterServer.Options(staleness=0))
    strategy.optimizer = SGD(strategy.shard, parameters.ops, momentum=0.9)
    strategy.start()
    work(strategy, np.full(parameters.length, context.rank, np.float32), 5 * strategy.workers)
    strategy.synchronize()
    reference = flat_of(50)
    optimizer = SGD(reference, reference.ops, momentum=0.9)
    for _ in range(5):
        reference.gradients[...] = (strategy.workers - 1) / 2
        optimizer.step(0.1)
    np.testing.assert_allclose(parameters.values[:50], reference.values[:50], rtol=1e-5)


@pytest.mark.parametrize("staleness", [1, 3, None])
@pytest.mark.parametrize("servers", [1, 2])
def test_one_sided_servers_use_every_step_once(
    context: Any, staleness: int | None, servers: int
) -> None:
    if servers >= context.size:
        return
    parameters = flat_of(100)
    options = OneSidedParameterServer.Options(servers=servers, staleness=bound(staleness))
    strategy = OneSidedParameterServer(parameters, context, options)
    strategy.optimizer = SGD(parameters, parameters.ops, momentum=0.0)
    strategy.start()
    luck, ahead = random.Random(context.rank), []

    def pause(done: int) -> None:
        time.sleep(luck.random() * 0.003)
        ahead.append(done - strategy.tickets.slowest())

    for _ in range(2):  # epochs
        done = work(strategy, np.ones(parameters.length, np.float32), 30 * strategy.workers, pause)
    strategy.synchronize()
    report = strategy.report()
    assert (
        report["applied"] == 60 * strategy.workers
        and sum(context.allgather_object(done, int)) == 30 * strategy.workers
    )
    np.testing.assert_allclose(parameters.values[:100], -0.1 * 60, rtol=1e-4)
    if staleness is not None and ahead:
        assert max(ahead) <= staleness + 1  # its own step among them


def test_hogwild_loses_nothing_where_ranks_touch_different_elements(context: Any) -> None:
    parameters = flat_of(64 * context.size)
    strategy = Hogwild(parameters, context, Hogwild.Options(sparse=True))
    strategy.start()
    own = slice(64 * context.rank, 64 * (context.rank + 1))
    gradient = np.zeros(parameters.length, np.float32)
    gradient[own] = 1
    done = work(strategy, gradient, 200 * context.size)
    strategy.synchronize()
    wanted = np.repeat(context.allgather_object(done, int), 64) * -0.1 / context.size
    np.testing.assert_allclose(parameters.values, wanted, rtol=1e-3)
    assert sum(context.allgather_object(done, int)) == 200 * context.size
    assert (
        sum(context.allgather_object(sum(strategy.staleness.values()), int)) == 200 * context.size
    )


def test_asynchronous_gossip_changes_the_mean_by_gradients_only(context: Any) -> None:
    parameters = flat_of(40)
    strategy = AsyncGossip(parameters, context, AsyncGossip.Options(graph="random"))
    strategy.optimizer = SGD(parameters, parameters.ops, momentum=0.0)
    strategy.start()
    done = work(strategy, np.ones(parameters.length, np.float32), 60 * context.size)
    strategy.synchronize()
    assert sum(context.allgather_object(done, int)) == 60 * context.size
    np.testing.assert_allclose(
        parameters.values[:40], -0.1 * 60, rtol=1e-4
    )  # the mean of all ranks' steps
