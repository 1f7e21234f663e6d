"""Every operation of the contract, on every backend, against float64 NumPy written out plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.backend.contract.conv import ConvGeometry

FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = st.sampled_from([np.float32, np.float64])
SIZES = st.integers(0, 70)


def tolerance(dtype: Any) -> dict[str, float]:
    return {"rtol": 2e-4, "atol": 2e-4} if dtype == np.float32 else {"rtol": 1e-10, "atol": 1e-10}


def assert_near(got: Any, wanted: np.ndarray, dtype: Any) -> None:
    """Sums of many products: float32 errors in proportion to the largest value, 1e-5 of it with
    Winograd.
    """
    limit = tolerance(dtype)
    if dtype == np.float32:
        limit["atol"] += 4e-5 * float(np.abs(wanted).max(initial=0))
    np.testing.assert_allclose(got, wanted, **limit)


def draw(seed: int, *shape: int, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def empty(ops: Any, *shape: int, dtype: Any) -> Any:
    return ops.to_device(np.full(shape, 77, dtype))


@given(DTYPES, SIZES, st.integers(1, 40), st.booleans(), st.integers(0, 99))
@FEW
def test_bias_act(ops: Any, dtype: Any, rows: int, cols: int, relu: bool, seed: int) -> None:
    y, bias = draw(seed, rows, cols, dtype=dtype), draw(seed + 1, cols, dtype=dtype)
    device = ops.to_device(y.copy())
    ops.bias_act(device, ops.to_device(bias), relu=relu)
    wanted = y + bias
    np.testing.assert_allclose(
        ops.to_host(device), np.maximum(wanted, 0) if relu else wanted, **tolerance(dtype)
    )


@given(DTYPES, SIZES, SIZES, st.integers(0, 99))
@FEW
def test_relu_and_its_gradient(ops: Any, dtype: Any, rows: int, cols: int, seed: int) -> None:
    x, dy = draw(seed, rows, cols, dtype=dtype), draw(seed + 1, rows, cols, dtype=dtype)
    y, dx = empty(ops, rows, cols, dtype=dtype), empty(ops, rows, cols, dtype=dtype)
    ops.relu_forward(ops.to_device(x), y)
    ops.relu_backward(ops.to_device(dy), y, dx)
    np.testing.assert_array_equal(ops.to_host(y), np.maximum(x, 0))
    np.testing.assert_array_equal(ops.to_host(dx), np.where(x > 0, dy, 0))


def test_relu_keeps_nan(ops: Any) -> None:
    y = empty(ops, 3, dtype=np.float32)
    ops.relu_forward(ops.to_device(np.array([-1, np.nan, 2], np.float32)), y)
    np.testing.assert_array_equal(ops.to_host(y), [0, np.nan, 2])


@given(DTYPES, SIZES, st.integers(1, 70), st.integers(0, 99))
@FEW
def test_column_sums(ops: Any, dtype: Any, rows: int, cols: int, seed: int) -> None:
    x, out = draw(seed, rows, cols, dtype=dtype), empty(ops, cols, dtype=dtype)
    ops.column_sums(ops.to_device(x), out)
    np.testing.assert_allclose(
        ops.to_host(out), x.astype(np.float64).sum(axis=0), **tolerance(dtype)
    )


@given(DTYPES, SIZES, st.integers(0, 99))
@FEW
def test_scale(ops: Any, dtype: Any, n: int, seed: int) -> None:
    raw = np.random.default_rng(seed).integers(0, 256, (n, 3), dtype=np.uint8)
    out = empty(ops, n, 3, dtype=dtype)
    ops.scale_u8(ops.to_device(raw), out, 0.5, -3.0)
    np.testing.assert_allclose(ops.to_host(out), raw * 0.5 - 3.0, **tolerance(dtype))
    floats = empty(ops, n, 3, dtype=dtype)
    ops.scale_float(ops.to_device(raw.astype(np.float64)), floats, 0.5, -3.0)
    np.testing.assert_allclose(ops.to_host(floats), raw * 0.5 - 3.0, **tolerance(dtype))


@given(
    DTYPES,
    st.integers(0, 33),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 99),
)
@FEW
def test_dense(ops: Any, dtype: Any, n: int, i: int, o: int, relu: bool, seed: int) -> None:
    x, w, b, dy = (
        draw(seed + k, *s, dtype=dtype) for k, s in enumerate([(n, i), (i, o), (o,), (n, o)])
    )
    y, dw, db, dx = (empty(ops, *s, dtype=dtype) for s in [(n, o), (i, o), (o,), (n, i)])
    ops.dense_forward(ops.to_device(x), ops.to_device(w), ops.to_device(b), y, relu=relu)
    wanted = x.astype(np.float64) @ w + b
    np.testing.assert_allclose(
        ops.to_host(y), np.maximum(wanted, 0) if relu else wanted, **tolerance(dtype)
    )
    ops.dense_backward(ops.to_device(x), ops.to_device(w), ops.to_device(dy), dw, db, dx)
    np.testing.assert_allclose(ops.to_host(dw), x.astype(np.float64).T @ dy, **tolerance(dtype))
    np.testing.assert_allclose(ops.to_host(dx), dy.astype(np.float64) @ w.T, **tolerance(dtype))
    np.testing.assert_allclose(
        ops.to_host(db), dy.astype(np.float64).sum(axis=0), **tolerance(dtype)
    )


def flat(h: int, w: int, ci: int, co: int, kh: int, kw: int, stride: int, pad: int) -> ConvGeometry:
    """A convolution of images."""
    return ConvGeometry(
        (1, h, w), ci, co, (1, kh, kw), stride=(1, stride, stride), pad=(0, pad, pad)
    )


GEOMETRIES = st.builds(
    lambda h, w, ci, co, kh, kw, stride, pad: flat(
        h + kh, w + kw, ci, co, kh, kw, stride, min(pad, kh, kw)
    ),
    *[st.integers(0, 13)] * 2,
    *[st.sampled_from([1, 2, 3, 5, 16, 17, 33])] * 2,
    *[st.integers(1, 5)] * 2,
    st.integers(1, 3),
    st.integers(0, 3),
)


def reference_conv(x: np.ndarray, w: np.ndarray, g: ConvGeometry) -> np.ndarray:
    """The definition, in float64, one tap at a time."""
    padded = np.pad(
        x.astype(np.float64), ((0, 0), (g.pad[1], g.pad[1]), (g.pad[1], g.pad[1]), (0, 0))
    )
    out = np.zeros((len(x), g.out_size[1], g.out_size[2], g.out_channels))
    for oy in range(g.out_size[1]):
        for ox in range(g.out_size[2]):
            window = padded[
                :,
                oy * g.stride[1] : oy * g.stride[1] + g.kernel[1],
                ox * g.stride[1] : ox * g.stride[1] + g.kernel[2],
            ]
            out[:, oy, ox] = np.tensordot(window, w.astype(np.float64), 3)
    return out


@given(DTYPES, st.integers(0, 3), GEOMETRIES, st.booleans(), st.integers(0, 99))
@settings(FEW, max_examples=40)
def test_conv2d_forward(
    ops: Any, dtype: Any, n: int, g: ConvGeometry, relu: bool, seed: int
) -> None:
    x, w = (
        draw(seed, n, g.size[1], g.size[2], g.in_channels, dtype=dtype),
        draw(seed + 1, g.kernel[1], g.kernel[2], g.in_channels, g.out_channels, dtype=dtype),
    )
    b, y = (
        draw(seed + 2, g.out_channels, dtype=dtype),
        empty(ops, n, g.out_size[1], g.out_size[2], g.out_channels, dtype=dtype),
    )
    ops.conv_forward(ops.to_device(x), ops.to_device(w), ops.to_device(b), y, g, relu=relu)
    wanted = reference_conv(x, w, g) + b
    assert_near(ops.to_host(y), np.maximum(wanted, 0) if relu else wanted, dtype)


@given(DTYPES, st.integers(0, 3), GEOMETRIES, st.integers(0, 99))
@settings(FEW, max_examples=40)
def test_conv2d_gradients_are_adjoint(
    ops: Any, dtype: Any, n: int, g: ConvGeometry, seed: int
) -> None:
    """conv is linear in x and in w: for every dy, <conv(x, w), dy> = <x, dx> = <w, dw> for random
    directions.
    """
    shapes = [
        (n, g.size[1], g.size[2], g.in_channels),
        (g.kernel[1], g.kernel[2], g.in_channels, g.out_channels),
        (n, g.out_size[1], g.out_size[2], g.out_channels),
    ]
    x, w, dy = (draw(seed + k, *shape, dtype=dtype) for k, shape in enumerate(shapes))
    dx, dw, db = (
        empty(ops, *shapes[0], dtype=dtype),
        empty(ops, *shapes[1], dtype=dtype),
        empty(ops, g.out_channels, dtype=dtype),
    )
    ops.conv_backward_input(ops.to_device(dy), ops.to_device(w), dx, g)
    ops.conv_backward_weights(ops.to_device(x), ops.to_device(dy), dw, db, g)
    double = dy.astype(np.float64)
    assert_near(ops.to_host(db), double.sum(axis=(0, 1, 2)), dtype)
    wanted_dw = np.zeros(w.shape)
    wanted_dx = np.zeros((n, g.size[1] + 2 * g.pad[1], g.size[2] + 2 * g.pad[1], g.in_channels))
    padded = np.pad(
        x.astype(np.float64), ((0, 0), (g.pad[1], g.pad[1]), (g.pad[1], g.pad[1]), (0, 0))
    )
    for oy in range(g.out_size[1]):
        for ox in range(g.out_size[2]):
            at = np.s_[
                :,
                oy * g.stride[1] : oy * g.stride[1] + g.kernel[1],
                ox * g.stride[1] : ox * g.stride[1] + g.kernel[2],
            ]
            wanted_dw += np.einsum("nyxc,no->yxco", padded[at], double[:, oy, ox])
            wanted_dx[at] += np.einsum("no,yxco->nyxc", double[:, oy, ox], w.astype(np.float64))
    assert_near(ops.to_host(dw), wanted_dw, dtype)
    inner = wanted_dx[:, g.pad[1] : g.pad[1] + g.size[1], g.pad[1] : g.pad[1] + g.size[2]]
    assert_near(ops.to_host(dx), inner, dtype)


# where the C kernels take Winograd's way, with edges that fill no tile
WINOGRAD = st.builds(
    lambda h, w, ci, co, pad: flat(h, w, ci, co, 3, 3, 1, pad),
    *[st.integers(3, 13)] * 2,
    *[st.sampled_from([16, 32, 48])] * 2,
    st.integers(0, 2),
)


@given(DTYPES, st.integers(0, 3), WINOGRAD, st.booleans(), st.integers(0, 99))
@FEW
def test_winograd_forward(
    ops: Any, dtype: Any, n: int, g: ConvGeometry, relu: bool, seed: int
) -> None:
    test_conv2d_forward.hypothesis.inner_test(ops, dtype, n, g, relu, seed)  # type: ignore[attr-defined]


@given(DTYPES, st.integers(0, 3), WINOGRAD, st.integers(0, 99))
@FEW
def test_winograd_gradients(ops: Any, dtype: Any, n: int, g: ConvGeometry, seed: int) -> None:
    test_conv2d_gradients_are_adjoint.hypothesis.inner_test(ops, dtype, n, g, seed)  # type: ignore[attr-defined]


@given(
    DTYPES,
    st.integers(0, 3),
    st.integers(2, 9),
    st.integers(2, 9),
    st.integers(1, 20),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 99),
)
@FEW
def test_maxpool2d(
    ops: Any, dtype: Any, n: int, h: int, w: int, c: int, k: int, relu: bool, seed: int
) -> None:
    k = min(k, h, w)
    x = np.round(draw(seed, n, h, w, c, dtype=dtype) * 2)  # rounded, so that there are ties
    oh, ow = h // k, w // k
    dy, y, dx = (
        draw(seed + 1, n, oh, ow, c, dtype=dtype),
        empty(ops, n, oh, ow, c, dtype=dtype),
        empty(ops, n, h, w, c, dtype=dtype),
    )
    ops.maxpool2d_forward(ops.to_device(x), y, k)
    ops.maxpool2d_backward(ops.to_device(dy), ops.to_device(x), y, dx, k, relu=relu)
    wanted, gradient = np.zeros((n, oh, ow, c)), np.zeros(x.shape)
    for place in np.ndindex(n, oh, ow, c):
        i, r, q, ch = place
        window = x[i, r * k : r * k + k, q * k : q * k + k, ch]
        wanted[place] = window.max()
        a, b = np.unravel_index(window.argmax(), window.shape)
        if not relu or window.max() > 0:
            gradient[i, r * k + a, q * k + b, ch] = dy[place]
    np.testing.assert_array_equal(ops.to_host(y), wanted)
    np.testing.assert_array_equal(ops.to_host(dx), gradient)


@given(DTYPES, st.integers(0, 40), st.integers(1, 70), st.floats(0.01, 2), st.integers(0, 99))
@FEW
def test_softmax_cross_entropy(
    ops: Any, dtype: Any, n: int, classes: int, scale: float, seed: int
) -> None:
    logits = draw(seed, n, classes, dtype=dtype) * 20
    labels = np.random.default_rng(seed).integers(-(seed % 2), classes, n)
    loss, d, hit = (
        empty(ops, n, dtype=dtype),
        empty(ops, n, classes, dtype=dtype),
        empty(ops, n, dtype=np.uint8),
    )
    smoothing = 0.1 * (seed % 3)
    ops.softmax_cross_entropy(
        ops.to_device(logits), ops.to_device(labels), loss, d, hit, scale, smoothing
    )
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True, initial=-np.inf)
    soft = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    rows, counted = np.arange(n), labels >= 0
    target = np.full_like(soft, smoothing / classes)
    target[rows, labels] += 1 - smoothing
    wanted = np.log(np.exp(z).sum(axis=1)) - (target * z).sum(axis=1)
    np.testing.assert_allclose(ops.to_host(loss), np.where(counted, wanted, 0), **tolerance(dtype))
    np.testing.assert_allclose(
        ops.to_host(d), np.where(counted[:, None], (soft - target) * scale, 0), **tolerance(dtype)
    )
    np.testing.assert_array_equal(ops.to_host(hit), counted & (logits.argmax(axis=1) == labels))


@given(DTYPES, st.integers(0, 600), st.booleans(), st.integers(0, 99))
@FEW
def test_sgd_step(ops: Any, dtype: Any, n: int, nesterov: bool, seed: int) -> None:
    p, g, v = (draw(seed + k, n, dtype=dtype) for k in range(3))
    device = [ops.to_device(a.copy()) for a in (p, g, v)]
    ops.sgd_step(*device, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    grad = g + 0.01 * p.astype(np.float64)
    speed = 0.9 * v + grad
    np.testing.assert_allclose(ops.to_host(device[2]), speed, **tolerance(dtype))
    np.testing.assert_allclose(
        ops.to_host(device[0]),
        p - 0.1 * (grad + 0.9 * speed if nesterov else speed),
        **tolerance(dtype),
    )


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
