"""Mean and variance against NumPy on all data at once, in any division."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mpidl.data import moments
from mpidl.data.formats.source import Source
from mpidl.data.manifest import MAX_CHANNELS, load_manifest
from mpidl.data.moments import Moments, channels_of, statistics_of
from mpidl.data.writer import WriteOptions, write_dataset

SHAPES = st.tuples(st.integers(1, 30), st.integers(1, 4))
VALUES = arrays.arrays(np.float64, SHAPES, elements=st.floats(-1e6, 1e6, allow_subnormal=False))


@given(VALUES, st.lists(st.integers(0, 30), max_size=4))
def test_any_division_among_ranks_gives_the_moments_of_all(x: Any, cuts: list[int]) -> None:
    parts = []
    for part in np.split(x, sorted(cuts)):
        parts.append(Moments.empty(x.shape[1]))
        parts[-1].add(part)
    found = statistics_of(parts, x.shape[1:])
    scale = np.abs(x).max()
    for ours, exact in (
        (found.mean, x.mean()),
        (found.std, x.std()),
        (found.channel_means, x.mean(axis=0)),
        (found.channel_stds, x.std(axis=0)),
    ):
        np.testing.assert_allclose(ours, exact, rtol=1e-12, atol=1e-13 * scale)
    assert found.is_intact and found.is_finite


def test_a_small_variance_beside_a_large_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[x^2] - E[x]^2 has no correct digit here."""
    monkeypatch.setattr(moments, "BLOCK", 64)
    x = 1e9 + np.random.default_rng(0).standard_normal((1000, 2))
    held = Moments.empty(2)
    for part in np.array_split(x, 7):
        held.add(part)
    rational = [Fraction(value) for value in x[:, 1].tolist()]
    mean = sum(rational) / len(rational)
    variance = sum((value - mean) ** 2 for value in rational) / len(rational)
    np.testing.assert_allclose(held.deviations()[1] ** 2, float(variance), rtol=1e-7)
    naive = (x[:, 1] ** 2).mean() - x[:, 1].mean() ** 2
    assert abs(naive - float(variance)) > 0.1


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((), 0), ((5,), 5), ((28, 28), 0), ((8, 8, 3), 3), ((4, 8, 8, 2), 2), ((1,), 1)],
)
def test_channels(shape: tuple[int, ...], channels: int) -> None:
    assert channels_of(shape) == channels


def test_many_channels_have_none() -> None:
    assert channels_of((MAX_CHANNELS,)) == MAX_CHANNELS and channels_of((MAX_CHANNELS + 1,)) == 0


def test_a_data_set_has_statistics_of_features_and_real_labels(
    tmp_path: Path, context: Any
) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 6, 5, 3), np.uint8)
    y = rng.standard_normal((40, 2)).astype(np.float32) * [1, 100]
    held = {"x": x, "label": y, "gray": x[..., 0], "number": np.arange(40)}
    source = Source(40, lambda low, high: {name: a[low:high] for name, a in held.items()})
    write_dataset(source, tmp_path / "set", WriteOptions(3), context, lambda count: None)
    fields = load_manifest(tmp_path / "set").fields
    for name, axes in (("x", (0, 1, 2)), ("label", (0,))):
        found, exact = fields[name].statistics, held[name].astype(np.float64)
        assert found is not None
        np.testing.assert_allclose([found.mean, found.std], [exact.mean(), exact.std()], 1e-13)
        np.testing.assert_allclose(found.channel_means, exact.mean(axis=axes), 1e-12)
        np.testing.assert_allclose(found.channel_stds, exact.std(axis=axes), 1e-12)
    gray = fields["gray"].statistics
    assert gray is not None and gray.channel_means == gray.channel_stds == ()
    assert fields["number"].statistics is None


def test_a_constant_channel_has_no_deviation() -> None:
    held = Moments.empty(2)
    rng = np.random.default_rng(0)
    for count in (7, 600, 1):
        part = np.full((count, 2), 0.1, np.float32)
        part[:, 1] = rng.standard_normal(count)
        held.add(part)
    assert held.mean[0] == np.float32(0.1) and held.deviations()[0] == 0
