"""Losses: values against NumPy, gradients against central differences in float64, and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mpidl.nn
from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import ConfigError, ShapeError
from mpidl.nn import (
    LOSSES,
    BCEWithLogitsLoss,
    CrossEntropy,
    HuberLoss,
    Loss,
    MAELoss,
    MSELoss,
    RelativeL2Loss,
)
from mpidl.options import documented

Shape = tuple[int, ...]


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def cross_entropy(x: np.ndarray, y: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    target = np.eye(x.shape[-1])[y] * (1 - smoothing) + smoothing / x.shape[-1]
    each = -(target * log_softmax(x)).sum(axis=-1)
    return np.asarray(each.reshape(len(x), -1).mean(axis=1))


def per_sample(each: np.ndarray) -> np.ndarray:
    return np.asarray(each.reshape(len(each), -1).mean(axis=1))


def norm(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt((x.reshape(len(x), -1) ** 2).sum(axis=1)))


def huber(x: np.ndarray, y: np.ndarray, delta: float = 1.0) -> np.ndarray:
    error = np.abs(x - y)
    return per_sample(np.where(error <= delta, error**2 / 2, delta * (error - delta / 2)))


# name: options, the loss of each sample
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "bce": ({}, lambda x, y: per_sample(np.log1p(np.exp(x)) - x * y)),
    "cross_entropy": ({"label_smoothing": 0.1}, lambda x, y: cross_entropy(x, y, 0.1)),
    "huber": ({"delta": 0.6}, lambda x, y: huber(x, y, 0.6)),
    "mae": ({}, lambda x, y: per_sample(np.abs(x - y))),
    "mse": ({}, lambda x, y: per_sample((x - y) ** 2)),
    "relative_l2": ({}, lambda x, y: norm(x - y) / norm(y)),
}
SHAPES: tuple[Shape, ...] = ((5,), (4, 3), (3, 2, 4), (2, 3, 2, 3))


def make(name: str, ops: Any, **options: Any) -> Loss:
    return LOSSES[name](ops, **options)


def draw(loss: Loss, shape: Shape, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and targets of 6 samples."""
    outputs = rng.standard_normal((6, *shape))
    if loss.targets == "classes":
        return outputs, rng.integers(0, shape[-1], (6, *shape[:-1]))
    return outputs, rng.random((6, *shape))


def test_every_loss_is_registered_and_tested() -> None:
    assert set(LOSSES) == set(CASES)
    classes = {LOSSES[name] for name in LOSSES}
    exported = [getattr(mpidl.nn, name) for name in mpidl.nn.__all__]
    kinds = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, Loss)}
    assert kinds - {Loss, mpidl.nn.FrameLoss} <= classes
    assert {LOSSES[name].targets for name in LOSSES} == {"classes", "values"}
    for name in LOSSES:  # the tables of the documentation are made from these
        options = LOSSES.options(name)
        assert set(documented(options)) == set(options.keys())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(CASES))
def test_values_and_gradients(ops: Any, name: str, shape: Shape, rng: np.random.Generator) -> None:
    options, wanted = CASES[name]
    loss = make(name, ops, **options)
    x, y = draw(loss, shape, rng)
    target = ops.to_device(y.astype(loss.target_dtype(np.float64)))
    result = loss(ops.to_device(x), target, 9)
    assert result.total == pytest.approx(wanted(x, y).sum(), rel=1e-9)
    assert result.count == 6
    gradient = ops.to_host(result.gradient).copy()
    assert gradient.shape == x.shape
    for direction in (rng.standard_normal(x.shape), np.eye(1, x.size, 4).reshape(x.shape)):
        totals = [
            loss(ops.to_device(x + sign * 1e-6 * direction), target, 9).total for sign in (1, -1)
        ]
        numeric = (totals[0] - totals[1]) / 2e-6 / 9
        assert numeric == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", sorted(CASES))
def test_parts_add_up_and_the_gradient_is_scaled(
    ops: Any, name: str, rng: np.random.Generator
) -> None:
    loss = make(name, ops)
    x, y = draw(loss, (4, 3), rng)
    x, y = ops.to_device(x), ops.to_device(y.astype(loss.target_dtype(np.float64)))
    whole = loss(x, y, 6)
    total, correct = whole.total, whole.correct
    gradient = ops.to_host(whole.gradient).copy()
    loss.gradient_scale = 128.0
    parts = []
    for rows in (slice(0, 2), slice(2, 2), slice(2, 6)):
        result = loss(x[rows], y[rows], 6)
        parts.append((result.total, result.correct, result.count))
        np.testing.assert_allclose(ops.to_host(result.gradient) / 128, gradient[rows], rtol=1e-12)
    assert np.sum(parts, axis=0) == pytest.approx((total, correct, 6), rel=1e-12)


def test_right_predictions_of_positions_are_shares_of_a_sample(ops: Any) -> None:
    logits = np.zeros((2, 4, 3))
    logits[..., 1] = 1
    labels = np.array([[1, 1, 1, 0], [1, 2, 2, 2]])
    result = CrossEntropy(ops)(ops.to_device(logits), ops.to_device(labels), 2)
    assert result.correct == 1.0
    assert MSELoss(ops)(ops.to_device(logits), ops.to_device(logits), 2).correct == 0


def test_negative_labels_add_nothing(ops: Any, rng: np.random.Generator) -> None:
    logits, labels = rng.standard_normal((2, 3, 4)), np.array([[0, -1, 3], [-100, -1, 2]])
    result = CrossEntropy(ops)(ops.to_device(logits), ops.to_device(labels), 2)
    gradient = ops.to_host(result.gradient)
    assert not gradient[labels < 0].any() and gradient[labels >= 0].any()
    kept = [-log_softmax(logits)[row, at, labels[row, at]] for row, at in ((0, 0), (0, 2), (1, 2))]
    assert result.total == pytest.approx(np.sum(kept) / 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bce_is_finite_for_any_logit(ops: Any, dtype: Any) -> None:
    logits = np.array([[-1e4, 1e4, -88.0, 88.0, 0.0]], dtype)
    targets = np.array([[1.0, 0.0, 0.0, 1.0, 0.5]], dtype)
    result = BCEWithLogitsLoss(ops)(ops.to_device(logits), ops.to_device(targets), 1)
    assert result.total == pytest.approx((2e4 + np.log(2)) / 5, rel=1e-6)
    wanted = np.array([[-1, 1, 0, 0, 0]]) / 5
    np.testing.assert_allclose(ops.to_host(result.gradient), wanted, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relative_error_of_a_zero_target_is_absolute(ops: Any, dtype: Any) -> None:
    outputs = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [1.0, 1.0]], dtype)
    targets = np.array([[0.0, 0.0], [1e-9, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype)
    result = RelativeL2Loss(ops)(ops.to_device(outputs), ops.to_device(targets), 1)
    np.testing.assert_allclose(ops.to_host(result.losses), [5, 5, 0, 0], rtol=1e-6)
    wanted = [[0.6, 0.8], [0.6, 0.8], [0, 0], [0, 0]]
    np.testing.assert_allclose(ops.to_host(result.gradient), wanted, rtol=1e-6)
    exact = RelativeL2Loss(ops, eps=0)
    losses = exact(ops.to_device(outputs[:2]), ops.to_device(targets[:2]), 1).losses
    np.testing.assert_allclose(ops.to_host(losses), [5, 5e9], rtol=1e-6)


def test_relative_error_does_not_see_the_amplitude(ops: Any, rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((2, 5, 7))
    totals = [
        RelativeL2Loss(ops)(ops.to_device(x * size), ops.to_device(y * size), 5).total
        for size in (1.0, 1e3)
    ]
    assert totals[0] == pytest.approx(totals[1], rel=1e-12)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_number_that_is_not_finite_is_seen(ops: Any, name: str, rng: np.random.Generator) -> None:
    loss = make(name, ops)
    x, y = draw(loss, (5,), rng)
    x[2, 3] = np.nan
    target = ops.to_device(y.astype(loss.target_dtype(np.float64)))
    assert np.isnan(loss(ops.to_device(x), target, 6).total)


@pytest.mark.parametrize(
    ("name", "outputs", "targets"),
    [
        ("cross_entropy", (4,), (4,)),
        ("cross_entropy", (8, 8, 4), (8,)),
        ("cross_entropy", (), ()),
        ("mse", (4,), ()),
        ("mae", (8, 8, 2), (8, 8)),
        ("huber", (8, 4), (4, 8)),
        ("bce", (3,), (4,)),
        ("relative_l2", (16, 16, 1), (16, 8, 1)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    ops: Any, name: str, outputs: Shape, targets: Shape
) -> None:
    loss = make(name, ops)
    with pytest.raises(ShapeError, match="outputs have shape"):
        loss.check(outputs, targets)
    dtype = loss.target_dtype(np.float32)
    with pytest.raises(ShapeError, match="outputs have shape"):
        loss(ops.xp.zeros((2, *outputs), np.float32), ops.xp.zeros((2, *targets), dtype), 2)


@pytest.mark.parametrize(
    ("name", "outputs", "targets"),
    [
        ("cross_entropy", (4,), ()),
        ("cross_entropy", (4,), (1,)),
        ("cross_entropy", (8, 8, 4), (8, 8, 1)),
        ("mse", (1,), ()),
        ("mse", (8, 8, 1), (8, 8)),
        ("relative_l2", (16, 2), (16, 2)),
    ],
)
def test_axes_of_one_element_may_be_left_out(
    ops: Any, name: str, outputs: Shape, targets: Shape
) -> None:
    loss = make(name, ops)
    dtype = loss.target_dtype(np.float32)
    x, y = ops.xp.zeros((2, *outputs), np.float32), ops.xp.zeros((2, *targets), dtype)
    assert loss(x, y, 2).gradient.shape == (2, *outputs)


def test_another_number_of_targets_is_refused(ops: Any) -> None:
    with pytest.raises(ShapeError, match="2 targets for 3 outputs"):
        MAELoss(ops)(ops.xp.zeros((3, 2)), ops.xp.zeros((2, 2)), 3)


def test_options_have_limits() -> None:
    for name, key, value in (
        ("cross_entropy", "label_smoothing", 1.5),
        ("huber", "delta", 0.0),
        ("relative_l2", "eps", -1.0),
    ):
        with pytest.raises(ConfigError, match=rf"{key} is {value}"):
            make(name, NumpyOps(), **{key: value})
    with pytest.raises(ConfigError, match=r"HuberLoss\(\.\.\.\): unknown key 'detla'"):
        HuberLoss(NumpyOps(), detla=0.5)
    assert HuberLoss(NumpyOps()).options.delta == 1.0


@pytest.mark.parametrize("name", sorted(CASES))
def test_float32_agrees_with_float64(ops: Any, name: str, rng: np.random.Generator) -> None:
    loss = make(name, ops)
    x, y = draw(loss, (40, 50), rng)
    found = []
    for dtype in (np.float32, np.float64):
        target = ops.to_device(y.astype(loss.target_dtype(dtype)))
        result = loss(ops.to_device(x.astype(dtype)), target, 6)
        found.append((result.total, ops.to_host(result.gradient).astype(np.float64).copy()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(CASES))
def test_16_bits_round_the_gradient_only(gpu_ops: Any, name: str, rng: np.random.Generator) -> None:
    loss = make(name, gpu_ops)
    x, y = draw(loss, (6, 5), rng)
    half = gpu_ops.to_device(x.astype(np.float16))
    target = gpu_ops.to_device(y.astype(loss.target_dtype(np.float16)))
    loss.gradient_scale = 1024.0
    result = loss(half, target, 6)
    assert result.gradient.dtype == np.float16 and result.losses.dtype == np.float32
    total, gradient = result.total, gpu_ops.to_host(result.gradient).astype(np.float64).copy()
    exact = loss(half.astype(np.float32), target, 6)
    assert total == pytest.approx(exact.total, rel=1e-5)
    wanted = gpu_ops.to_host(exact.gradient)
    np.testing.assert_allclose(gradient, wanted, rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3)])
def test_class_weights_multiply_losses_and_gradients(shape: Shape) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(shape), rng.integers(-1, 3, shape[:-1])
    weights = (0.5, 2.0, 0.0)
    plain, weighted = (
        CrossEntropy(NumpyOps(), **given)(x, y, 7) for given in ({}, {"class_weights": weights})
    )
    factors = np.array([*weights, 0.0])[y]
    np.testing.assert_allclose(weighted.losses, plain.losses * factors.reshape(-1), rtol=1e-12)
    np.testing.assert_allclose(weighted.gradient, plain.gradient * factors[..., None], rtol=1e-12)


def test_class_weights_of_another_number_of_classes_are_refused() -> None:
    loss = CrossEntropy(NumpyOps(), class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="2 numbers for 3 classes") as caught:
        loss(np.zeros((2, 3)), np.zeros(2, np.int64), 2)
    assert caught.value.where == "loss.class_weights"


@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 2.0, 0.0, 3.0)])
def test_shares_of_classes_are_means_of_losses(
    ops: Any, weights: tuple[float, ...], rng: np.random.Generator
) -> None:
    """Cross-entropy with two labels is the weighted mean of that with each, so are gradients."""
    ops = NumpyOps(1) if weights else ops  # the stand-in for CuPy cannot weight
    loss = make("cross_entropy", ops, label_smoothing=0.1, class_weights=weights)
    x = rng.standard_normal((6, 5))
    labels, share = rng.integers(0, 5, (2, 6)), rng.random(6)
    parts, total, gradient = [], np.zeros(6), np.zeros((6, 5))
    for own, part in zip(labels, (share, 1 - share), strict=True):
        result = loss(ops.to_device(x), ops.to_device(own), 9)
        total += part * ops.to_host(result.losses)
        gradient += part[:, None] * ops.to_host(result.gradient)
        parts.append(part[:, None] * np.eye(5)[own])
    mixed = loss(ops.to_device(x), ops.to_device(parts[0] + parts[1]), 9)
    np.testing.assert_allclose(ops.to_host(mixed.losses), total, rtol=1e-12)
    np.testing.assert_allclose(ops.to_host(mixed.gradient), gradient, rtol=1e-9, atol=1e-15)
    if not weights:
        assert mixed.correct == ((parts[0] + parts[1]).argmax(1) == x.argmax(1)).sum()
    with pytest.raises(ShapeError):
        loss(ops.to_device(x), ops.to_device(np.ones((6, 4))), 9)


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "bce"])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (5, 2, 3)])
def test_channel_weights_multiply_losses_and_gradients(
    ops: Any, name: str, shape: Shape, rng: np.random.Generator
) -> None:
    weights, options = (0.5, 0.0, 3.0), CASES[name][0]
    x, y = rng.standard_normal((6, *shape)), rng.random((6, *shape))
    plain, weighted = LOSSES[name](ops, **options), LOSSES[name](ops, weights=weights, **options)
    total, gradient = 0.0, np.zeros(x.shape)
    for channel, weight in enumerate(weights):
        part = plain(
            *(ops.to_device(np.ascontiguousarray(array[..., channel])) for array in (x, y)), 10
        )
        total += weight * part.total / 3
        gradient[..., channel] = weight * ops.to_host(part.gradient) / 3
    found = weighted(ops.to_device(x), ops.to_device(y), 10)
    assert found.total == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(ops.to_host(found.gradient), gradient, rtol=1e-12, atol=1e-15)


def test_channel_weights_of_another_number_of_channels_are_refused(ops: Any) -> None:
    with pytest.raises(ConfigError, match=r"2 number\(s\), .* 3 channel\(s\)"):
        MSELoss(ops, weights=(1.0, 2.0)).check_outputs((4, 3))
    with pytest.raises(ConfigError, match="all 0"):
        MSELoss(ops, weights=(0.0, 0.0))
    with pytest.raises(ConfigError):
        RelativeL2Loss(ops, weights=(1.0,))
