"""Mixup and cutmix: what they do to samples and targets, and who is whose partner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.augment import AugmentConfig, Pipeline, Samples, mix_targets
from mpidl.augment.mixing import CELLS, beta_quantiles
from mpidl.backend.contract.augment import Drawn
from mpidl.data import LaneSampler
from mpidl.data.sampler import sample_numbers
from mpidl.errors import ConfigError, DataError
from mpidl.options import Place

IMAGES = Samples((9, 7, 3), "image", "classes", (), classes=4)
MASKS = Samples((9, 7, 3), "image", "classes", (9, 7), classes=4)
FIELDS = Samples((9, 7, 3), "image", "values", (9, 7, 2))


def made(ops: Any, samples: Samples, **options: Any) -> Any:
    return Pipeline(AugmentConfig.read(options, Place()).entries, samples, ops).mixing


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 2.5, 8.0])
def test_quantiles_are_those_of_the_beta_distribution(alpha: float) -> None:
    drawn = np.sort(np.random.default_rng(3).beta(alpha, alpha, 200_000))
    found, wanted = beta_quantiles(alpha), np.linspace(0, 1, CELLS + 1)
    low = found[: CELLS // 2 + 1]  # near 1 neighbors are one double
    np.testing.assert_allclose(found, 1 - found[::-1], atol=1e-15)
    assert np.abs(np.searchsorted(drawn, low) / len(drawn) - wanted[: len(low)]).max() < 0.005
    if alpha == 1:
        np.testing.assert_allclose(beta_quantiles(1.0), wanted, atol=1e-9)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_each_sample_is_mixed_by_its_share(ops: Any, name: str, rng: np.random.Generator) -> None:
    mixing = made(ops, IMAGES, **{name: {"alpha": 1.0, "probability": 0.7}})
    count = 400
    own, other = np.zeros((count, 9, 7, 3), np.float32), np.ones((count, 9, 7, 3), np.float32)
    x, share = ops.to_device(own), ops.to_device(np.empty(count, np.float32))
    numbers, table = ops.to_device(np.arange(count)), ops.to_device(mixing.quantiles)
    mixing.apply(ops, x, ops.to_device(other), share, table, Drawn(numbers, 5, 0))
    got, kept = ops.to_host(x), ops.to_host(share)
    np.testing.assert_allclose(got.mean(axis=(1, 2, 3)), 1 - kept, atol=1e-5)
    assert (kept == 1).mean() == pytest.approx(0.3, abs=0.1 if name == "mixup" else 0.2)
    if name == "cutmix":
        assert set(np.unique(got)) == {0, 1}
    labels, partners = rng.integers(0, 4, count), rng.integers(0, 4, count)
    out = ops.to_device(np.full((count, 4), np.nan, np.float32))
    mix_targets(ops, share, ops.to_device(labels), ops.to_device(partners), out)
    wanted = kept[:, None] * np.eye(4)[labels] + (1 - kept[:, None]) * np.eye(4)[partners]
    np.testing.assert_allclose(ops.to_host(out), wanted, atol=1e-6)


def test_fields_get_the_box_of_their_inputs(ops: Any) -> None:
    for samples in (FIELDS, MASKS):
        mixing = made(ops, samples, cutmix={})
        x, y = (ops.to_device(np.zeros((20, 9, 7, c), np.float32)) for c in (3, 2))
        other_x, other_y = (ops.to_device(np.ones((20, 9, 7, c), np.float32)) for c in (3, 2))
        if samples is MASKS:
            y, other_y = (ops.to_device(ops.to_host(a)[..., 0].copy()) for a in (y, other_y))
        share, table = ops.to_device(np.empty(20, np.float32)), ops.to_device(mixing.quantiles)
        drawn = Drawn(ops.to_device(np.arange(20)), 5, 1)
        mixing.apply(ops, x, other_x, share, table, drawn)
        assert mixing.mix_fields(ops, y, other_y, table, drawn)
        moved = ops.to_host(y) if samples is FIELDS else ops.to_host(y)[..., None]
        np.testing.assert_array_equal(moved[..., 0], ops.to_host(x)[..., 0])
        assert 0 < moved.mean() < 1


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        (MASKS, {"mixup": {}}, "classes of the shape"),
        (Samples((9, 3), "series", "values", (2,)), {"cutmix": {}}, "augment.cutmix needs images"),
        (IMAGES, {"mixup": {}, "cutmix": {}}, "both mix"),
        (IMAGES, {"mixup": {"alpha": 0}}, "above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(samples: Samples, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made(None, samples, **options)


@given(
    st.integers(2, 7),
    st.integers(2, 9),
    st.integers(0, 6),
    st.sampled_from([None, 2, 3, 5]),
    st.integers(0, 8),
)
def test_partners_are_the_next_of_their_lanes(
    batch: int, steps: int, extra: int, window: int | None, first: int
) -> None:
    total = batch * steps - extra % batch

    def pairs(rank: int, size: int, first: int) -> list[set[tuple[int, int]]]:
        sampler = LaneSampler(total, batch, rank, size, seed=4, window=window, pairs=True)
        return [
            set(
                zip(
                    sample_numbers(found.pieces, rows).tolist(),
                    sample_numbers(found.pieces, partners).tolist(),
                    strict=True,
                )
            )
            for found in sampler.windows(1, first)
            for rows, partners in zip(found.rows, found.partners, strict=True)
        ]

    whole = pairs(0, 1, 0)
    parts = pairs(0, 2, 0), pairs(1, 2, 0)
    assert whole == [a | b for a, b in zip(*parts, strict=True)]
    first = min(first, len(whole) - 1)
    assert pairs(0, 1, first) == whole[first:]
    sampler = LaneSampler(total, batch, seed=4, window=window)
    depth = sampler.depth
    for lane in range(batch):
        order = sampler.lane_order(1, lane).tolist()
        for low in range(0, len(order), depth):
            drawn = order[low : low + depth]
            for place, sample in enumerate(drawn):
                assert (sample, drawn[(place + 1) % len(drawn)]) in whole[low + place]


def test_one_step_in_memory_has_no_partners() -> None:
    with pytest.raises(DataError, match="of one step"):
        LaneSampler(40, 4, window=1, pairs=True)
