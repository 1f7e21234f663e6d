"""The fleet-style API: a loop of one's own with every strategy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl import fleet
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import ConfigError
from mpidl.models import build_layers
from mpidl.nn import CrossEntropy, Model
from mpidl.optim import LAMB, Adam
from mpidl.sync import STRATEGIES

pytestmark = pytest.mark.mpi
CHOICES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in STRATEGIES),
    ("zero", {"stage": 1}),
    ("zero", {"stage": 3}),
    ("local_sgd", {"steps": 4}),
    ("gossip", {"graph": "ring"}),
    ("async_gossip", {"graph": "random"}),
    ("parameter_server", {"staleness": 2}),
]


@pytest.mark.parametrize("optimizer_of", [Adam, LAMB])
@pytest.mark.parametrize(("name", "options"), CHOICES)
def test_a_loop_of_ones_own(
    context: Any, name: str, options: dict[str, Any], optimizer_of: Any
) -> None:
    fleet.init(name, **options)
    model = Model(build_layers("mlp", (6,), 3, {"hidden": (16,)}), (6,), NumpyOps())
    model.parameters.initialize(context.rank)  # rank 0's count
    kind = STRATEGIES[name]
    if not kind.training_ranks(kind.Options(**options), context.size):
        with pytest.raises(ConfigError, match="leave no worker"):
            fleet.DistributedOptimizer(Adam(model.parameters, model.ops), model)
        return
    optimizer = fleet.distributed_optimizer(optimizer_of(model.parameters, model.ops), model)
    loss, rng = CrossEntropy(model.ops), np.random.default_rng(context.rank)
    assert fleet.is_worker() != fleet.is_server() and fleet.worker_num() in (
        context.size,
        context.size - 1,
    )
    for _ in optimizer.iterate_steps(60):
        x = rng.standard_normal((16, 6)).astype(np.float32)
        logits, backward = model.forward(x, train=True)
        result = loss(logits, x[:, :3].argmax(axis=1), optimizer.loss_divisor(len(x)))
        backward(result.gradient, optimizer.on_gradients_ready)
        optimizer.step(0.05, loss=result.total, count=len(x))
    optimizer.synchronize()
    whole = np.array(optimizer.values())
    for other in context.allgather_object(whole, np.ndarray):
        np.testing.assert_allclose(other, whole, rtol=1e-5, atol=1e-6)
    x = np.random.default_rng(99).standard_normal((200, 6)).astype(np.float32)
    hits = float((model.forward(x)[0].argmax(axis=1) == x[:, :3].argmax(axis=1)).mean())
    assert hits > 0.8, (name, options, hits)
    assert optimizer.report()["sent_bytes"] >= 0


def test_wrong_options_are_refused_on_all_ranks(context: Any) -> None:
    with pytest.raises(ConfigError, match="choose one of"):
        fleet.init("ring")
    with pytest.raises(ConfigError, match="steps is 0, but must be"):
        fleet.init("local_sgd", steps=0)
    with pytest.raises(ConfigError, match=r"works with sync\.strategy"):
        fleet.init("gossip", compression="int8")
    fleet.init()
