"""Augmentations: what they do to samples, and that only (seed, epoch, sample) decides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mpidl.augment import AugmentConfig, Pipeline, Samples
from mpidl.backend.contract.augment import Drawn
from mpidl.errors import ConfigError
from mpidl.options import Place

IMAGES = Samples((9, 7, 3), "image", "classes", (), 0.5, -0.25)
FIELDS = Samples((8, 8, 3), "image", "values", (8, 8, 2))


def pipeline(ops: Any, samples: Samples, **options: Any) -> Pipeline:
    return Pipeline(AugmentConfig.read(options, Place()).entries, samples, ops)


def changed(ops: Any, made: Pipeline, raw: np.ndarray, numbers: np.ndarray, epoch: int = 0) -> Any:
    out = ops.to_device(np.empty(raw.shape, np.float32))
    made.inputs(ops.to_device(raw), out, Drawn(ops.to_device(numbers), 5, epoch))
    return ops.to_host(out).copy()


def test_a_sample_is_changed_the_same_in_any_batch(ops: Any, rng: np.random.Generator) -> None:
    made = pipeline(ops, IMAGES, crop={"padding": 2}, flip={"vertical": 0.5}, cutout={"size": 3})
    raw, numbers = rng.integers(0, 256, (40, 9, 7, 3)).astype(np.uint8), rng.permutation(900)[:40]
    whole = changed(ops, made, raw, numbers)
    parts = [slice(0, 0), slice(0, 13), slice(13, 14), slice(14, 40)]
    again = [changed(ops, made, raw[part].copy(), numbers[part].copy()) for part in parts]
    np.testing.assert_array_equal(np.concatenate(again), whole)
    other = changed(ops, made, raw, numbers, epoch=1)
    assert (other != whole).any(axis=(1, 2, 3)).mean() > 0.9


def test_each_crop_and_flip_is_one_of_the_possible_ones(ops: Any, rng: np.random.Generator) -> None:
    raw = rng.integers(0, 256, (60, 9, 7, 3)).astype(np.uint8)
    got = changed(ops, pipeline(ops, IMAGES, crop={"padding": 2}, flip={}), raw, np.arange(60))
    padded = np.pad(
        raw * np.float32(0.5) - np.float32(0.25),
        [(0, 0), (2, 2), (2, 2), (0, 0)],
        constant_values=-0.25,
    )
    seen = set()
    for sample, result in zip(padded, got, strict=True):
        found = [
            (i, j, flip)
            for i in range(5)
            for j in range(5)
            for flip in (1, -1)
            if np.allclose(sample[i : i + 9, j : j + 7][:, ::flip], result, atol=1e-5)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 20 and {flip for *_, flip in seen} == {1, -1}


@pytest.mark.parametrize("periodic", [False, True])
def test_patches_are_parts_of_samples_and_of_their_targets(
    ops: Any, rng: np.random.Generator, periodic: bool
) -> None:
    samples = Samples((6, 8, 9, 2), "image", "values", (6, 8, 9))
    raw = np.arange(50 * 6 * 8 * 9 * 2, dtype=np.float32).reshape(50, 6, 8, 9, 2)
    more = {"roll": {"axes": [2]}} if periodic else {"flip": {}}
    made = pipeline(ops, samples, patch={"size": [2, 8, 5]}, **more)
    x, y = (ops.to_device(np.empty((50, 2, 8, 5, *c), np.float32)) for c in ((2,), ()))
    drawn = Drawn(ops.to_device(np.arange(50)), 5, 0)
    made.inputs(ops.to_device(raw), x, drawn)
    made.targets(ops.to_device(raw[..., 0].copy()), y, drawn)
    x, seen = ops.to_host(x), set()
    np.testing.assert_array_equal(ops.to_host(y), x[..., 0])
    for sample, part in zip(raw, x, strict=True):
        plane = int(np.argmax((sample[:, 0, :, 0] == part[0, 0, 0, 0]).any(axis=1)))
        column = int(np.argmax(sample[plane, 0, :, 0] == part[0, 0, 0, 0]))
        backwards = not periodic and part[0, 0, 1, 0] < part[0, 0, 0, 0]
        columns = (column + np.arange(5) * (-1 if backwards else 1)) % 9
        np.testing.assert_array_equal(part, sample[plane : plane + 2][:, :, columns])
        seen.add((plane, column, backwards))
    assert {plane for plane, *_ in seen} == set(range(5)) and len(seen) > 20
    assert not periodic or any(column > 4 for _, column, _ in seen)


def test_rotations_turn_vectors_and_targets_alike(ops: Any, rng: np.random.Generator) -> None:
    """A gradient of a scalar field is turned into the gradient of the turned field."""
    scalar = rng.standard_normal((30, 8, 8)).astype(np.float32)

    def gradient(field: np.ndarray, axis: int) -> np.ndarray:  # periodic, central differences
        return (np.roll(field, -1, axis) - np.roll(field, 1, axis)) / 2

    u, v = gradient(scalar, 1), gradient(scalar, 2)
    raw, target = np.stack([v, scalar, u], axis=-1), np.stack([u, v], axis=-1)
    made = pipeline(ops, FIELDS, roll={}, rotate={"vectors": [[2, 0]], "target_vectors": [[0, 1]]})
    numbers = np.arange(30)
    x = changed(ops, made, raw, numbers)
    y = ops.to_device(np.empty_like(target))
    made.targets(ops.to_device(target), y, Drawn(ops.to_device(numbers), 5, 0))
    for axis, channel in ((1, 2), (2, 0)):
        np.testing.assert_allclose(x[..., channel], gradient(x[..., 1], axis), atol=1e-6)
    np.testing.assert_allclose(ops.to_host(y), x[..., [2, 0]], atol=1e-6)
    assert (x[..., 1] != scalar).any(axis=(1, 2)).mean() > 0.9
    np.testing.assert_allclose(np.sort(x[..., 1].reshape(30, -1)), np.sort(scalar.reshape(30, -1)))


def test_colors_change_by_their_factors(ops: Any, rng: np.random.Generator) -> None:
    raw = rng.integers(0, 256, (50, 9, 7, 3)).astype(np.uint8)
    weights = np.array([0.299, 0.587, 0.114])

    def units(**options: float) -> np.ndarray:
        none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
        x = changed(ops, pipeline(ops, IMAGES, jitter=none | options), raw, np.arange(50))
        return np.asarray((x + 0.25) / 0.5, np.float64)  # as they were stored

    def spread(each: np.ndarray) -> None:
        assert 0.6 <= each.min() < 0.75 and 1.25 < each.max() <= 1.4

    light = units(brightness=0.4)
    spread(light.sum(axis=3).sum(axis=(1, 2)) / raw.sum(axis=(1, 2, 3)))
    mean = (raw @ weights).mean(axis=(1, 2))[:, None, None, None]
    harsh = units(contrast=0.4)
    spread(np.abs(harsh - mean).sum(axis=(1, 2, 3)) / np.abs(raw - mean).sum(axis=(1, 2, 3)))
    gray = (raw @ weights)[..., None]
    vivid = units(saturation=0.4)
    np.testing.assert_allclose(vivid @ weights, gray[..., 0], atol=1e-2)
    spread(np.abs(vivid - gray).sum(axis=(1, 2, 3)) / np.abs(raw - gray).sum(axis=(1, 2, 3)))


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        (IMAGES, {"patch": {"size": [4, 8]}}, r"give 2 number\(s\) up to \[9, 7\]"),
        (FIELDS, {"patch": {"size": [4]}}, "takes parts of"),
        (FIELDS, {"patch": {"size": [4, 3]}, "rotate": {}}, "not square"),
        (Samples((9, 3), "series", "classes", ()), {"crop": {}}, "augment.crop needs images"),
        (Samples((9,), "image", "classes", ()), {"flip": {}}, "augment.flip needs images"),
        (IMAGES, {"crop": {"padding": 7}}, "pads by 7 pixels"),
        (IMAGES, {"rotate": {}}, "not square"),
        (Samples((9, 7, 1), "image", "classes", ()), {"jitter": {"saturation": 0.1}}, "1 channel"),
        (IMAGES, {"roll": {"axes": [2]}}, "fields have 2"),
        (FIELDS, {"crop": {}}, "no value beyond the edge"),
        (FIELDS, {"rotate": {"vectors": [[0, 3]]}}, "there are 3 channels"),
        (Samples((8, 8, 3), "image", "values", (4, 4)), {"flip": {}}, "other axes"),
    ],
)
def test_what_does_not_fit_is_refused(samples: Samples, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Pipeline(AugmentConfig.read(options, Place()).entries, samples, None)  # type: ignore[arg-type]
    assert caught.value.remedy


@pytest.mark.parametrize(
    "tree", [{"crop": {}, "roll": {}}, {"crop": {}, "patch": {}}, {"flop": {}}, {"crop": 4}]
)
def test_impossible_sections_are_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AugmentConfig.read(tree, Place())


def test_noise_is_normal_and_independent(ops: Any, rng: np.random.Generator) -> None:
    samples = Samples((32, 30, 3), "image", "classes", ())
    made = pipeline(ops, samples, noise={"std": 0.25})
    raw = rng.standard_normal((12, 32, 30, 3)).astype(np.float32)
    added, later = (
        (changed(ops, made, raw, np.arange(12), e) - raw).ravel() / 0.25 for e in (0, 1)
    )
    assert np.unique(np.round(added, 5)).size > 0.9 * added.size
    assert abs(np.corrcoef([added, later])[0, 1]) < 0.03
    # the distance to the normal distribution (Kolmogorov and Smirnov), below its 1e-4 quantile
    every = np.sort(added)
    distribution = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in every])
    steps = np.arange(1, len(every) + 1) / len(every)
    assert np.abs(distribution - steps).max() < 2.2 / math.sqrt(len(every))
    assert every[0] < -3.5 and every[-1] > 3.5
