"""Whole backends: what they write, their levels and threads, and the same bits for parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.backend.test_ops import draw, flat

FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = st.sampled_from([np.float32, np.float64])
SIZES = st.integers(0, 70)


def test_the_backends_do_not_write_past_their_output(ops: Any) -> None:
    """Output arrays inside a larger one: what lies around them stays as it was."""
    g = flat(7, 5, 3, 17, 3, 3, 1, 1)
    x, w, b = (
        draw(0, 2, 7, 5, 3, dtype=np.float32),
        draw(1, 3, 3, 3, 17, dtype=np.float32),
        draw(2, 17, dtype=np.float32),
    )
    size = 2 * 7 * 5 * 17
    frame = ops.to_device(np.full(size + 64, 5.0, np.float32))
    ops.conv_forward(
        ops.to_device(x),
        ops.to_device(w),
        ops.to_device(b),
        frame[32 : 32 + size].reshape(2, 7, 5, 17),
        g,
        relu=False,
    )
    host = ops.to_host(frame)
    assert (host[:32] == 5).all() and (host[-32:] == 5).all()


@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_every_c_level_that_runs_here_agrees(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpidl.backend import kernels, numpy_ops

    monkeypatch.setenv("MPIDL_CPU_LEVEL", level)
    if not kernels.supported_levels():
        pytest.skip(f"this processor cannot run level {level}, or it was not built")
    kernels.load_library.cache_clear()
    try:
        chosen, plain = numpy_ops.NumpyOps(), numpy_ops.NumpyOps(use_c=False)
        assert chosen.level == level
        g = flat(9, 8, 5, 19, 3, 3, 1, 1)
        x, w, b = (
            draw(0, 2, 9, 8, 5, dtype=np.float32),
            draw(1, 3, 3, 5, 19, dtype=np.float32),
            draw(2, 19, dtype=np.float32),
        )
        results = [np.empty((2, 9, 8, 19), np.float32) for _ in range(2)]
        for ops, y in zip((chosen, plain), results, strict=True):
            ops.conv_forward(x, w, b, y, g, relu=True)
        np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)
    finally:
        kernels.load_library.cache_clear()


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("cnn", (20, 20, 3), {"channels": [20, 40], "hidden": [70]}),
        ("cnn", (20, 20, 3), {"channels": [16, 32], "hidden": [70]}),  # Winograd
        ("resnet", (16, 16, 3), {"depth": 10, "width": 16}),
        ("gpt", (40,), {"width": 48, "depth": 2, "heads": 4, "dropout": 0.1}),
        ("lstm", (12,), {"units": 64, "depth": 1, "embedding": 32}),
    ],
)
def test_threads_do_not_change_a_bit(
    name: str, shape: Any, options: Any, rng: np.random.Generator
) -> None:
    from mpidl.backend.numpy_ops import NumpyOps
    from mpidl.models import build_layers
    from mpidl.nn import CrossEntropy, Model
    from mpidl.optim import Adam

    tokens = len(shape) == 1
    x = (
        rng.integers(0, 50, (33, *shape))
        if tokens
        else rng.standard_normal((33, *shape)).astype(np.float32)
    )
    y = rng.integers(0, 50, (33, *shape)) if tokens else rng.integers(0, 7, 33)
    results = []
    for threads in (1, 2, 3):
        ops = NumpyOps(threads)
        model = Model(build_layers(name, shape, 50 if tokens else 7, options), shape, ops)
        model.parameters.initialize(0)
        optimizer, loss = Adam(model.parameters, ops), CrossEntropy(ops)
        for _ in range(3):
            logits, backward = model.forward(x, train=True)
            backward(loss(logits, y, len(y)).gradient, None)
            optimizer.step(0.01)
        results.append(model.parameters.values.tobytes())
    NumpyOps(1)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("cnn", (20, 20, 3), {"channels": [16, 32], "hidden": [70]}),
        ("gpt", (40,), {"width": 48, "depth": 2, "heads": 4}),
        ("unet", (16, 16, 3), {"channels": [16, 32], "groups": 4}),
    ],
)
def test_a_batch_in_parts_gives_the_same_bits(
    name: str, shape: Any, options: Any, rng: np.random.Generator
) -> None:
    """No sample's result depends on those beside it: so results do not depend on the number of
    ranks.
    """
    from mpidl.backend.numpy_ops import NumpyOps
    from mpidl.models import build_layers
    from mpidl.nn import Model

    ops = NumpyOps()
    if ops.level == "none":
        pytest.skip("promised for the C kernels only")
    x = (
        rng.integers(0, 50, (13, *shape))
        if len(shape) == 1
        else rng.standard_normal((13, *shape)).astype(np.float32)
    )
    model = Model(build_layers(name, shape, 50, options), shape, ops)
    model.parameters.initialize(0)
    whole = model.forward(x)[0].copy()
    for low, high in ((0, 1), (1, 6), (6, 13)):
        np.testing.assert_array_equal(model.forward(x[low:high])[0], whole[low:high])
