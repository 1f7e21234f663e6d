"""Every operation of the contract, on every backend, against float64 NumPy written out plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
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
