"""Mixed and balanced sampling: exact shares, equal batches for any number of ranks, resumable."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpidl.data import LaneSampler, Loader, Reader
from mpidl.data.formats.source import Source
from mpidl.data.mixture import Mixture
from mpidl.data.native import keys, read_rows, shuffle_rows
from mpidl.data.strata import Strata, apportion
from mpidl.data.training import Draw, build_sampler, open_training
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import DataError


@st.composite
def mixed(draw: st.DrawFn) -> LaneSampler:
    sizes = np.array(draw(st.lists(st.integers(1, 60), min_size=1, max_size=5)))
    weights = draw(st.lists(st.floats(0.01, 5), min_size=len(sizes), max_size=len(sizes)))
    total = draw(st.integers(1, 200))
    members = None
    if draw(st.booleans()):  # classes: scattered samples
        order = np.random.default_rng(draw(st.integers(0, 9))).permutation(int(sizes.sum()))
        members = np.concatenate([np.sort(p) for p in np.split(order, np.cumsum(sizes)[:-1])])
    return LaneSampler(
        total,
        draw(st.integers(1, total)),
        seed=draw(st.integers(0, 9)),
        window=draw(st.one_of(st.none(), st.integers(1, 12))),
        strata=Strata(apportion(total, weights), sizes, members),
    )


def batches(sampler: LaneSampler, size: int, epoch: int, first: int = 0) -> list[np.ndarray]:
    """The sample numbers of each step as `size` ranks read them, by windows, pieces and rows."""
    found: dict[int, list[np.ndarray]] = {}
    for rank in range(size):
        for window in replace(sampler, rank=rank, size=size).windows(epoch, first):
            held = np.concatenate([np.empty(0, int), *(np.arange(*p) for p in window.pieces)])
            for step, rows in enumerate(window.rows, window.first_step):
                found.setdefault(step, []).append(held[rows])
    return [np.concatenate(found[step]) for step in sorted(found)]


@given(mixed(), st.integers(2, 5), st.integers(0, 3), st.data())
@settings(max_examples=200, deadline=None)
def test_any_rank_count_and_any_first_step(
    sampler: LaneSampler, size: int, epoch: int, data: st.DataObject
) -> None:
    assume(size <= sampler.global_batch)
    wanted = batches(sampler, 1, epoch)
    assert [len(batch) for batch in wanted] == [sampler.count(s) for s in range(sampler.steps)]
    first = data.draw(st.integers(0, sampler.steps - 1))
    found = batches(sampler, size, epoch, first)
    for a, b in zip(found, wanted[first:], strict=True):
        np.testing.assert_array_equal(a, b)


def stratum_of(sampler: LaneSampler, samples: np.ndarray) -> np.ndarray:
    strata = sampler.strata
    assert strata is not None
    owner = np.repeat(np.arange(len(strata.sizes)), strata.sizes)
    if strata.members is not None:
        owner = owner[np.argsort(strata.members)]
    return owner[samples]


@given(mixed(), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_shares_of_an_epoch_are_exact(sampler: LaneSampler, epoch: int) -> None:
    seen = stratum_of(sampler, np.concatenate(batches(sampler, 1, epoch)))
    assert sampler.strata is not None
    np.testing.assert_array_equal(
        np.bincount(seen, minlength=len(sampler.strata.draws)), sampler.strata.draws
    )


def test_shares_hold_within_windows_and_batches_are_mixed() -> None:
    draws = apportion(6400, [0.7, 0.3])
    sampler = LaneSampler(6400, 64, window=10, strata=Strata(draws, np.array([5000, 900])))
    second = np.array([(batch >= 5000).sum() for batch in batches(sampler, 1, 0)])
    assert second.sum() == 1920
    np.testing.assert_allclose(second.reshape(-1, 10).sum(axis=1), 192, atol=64)
    assert second.min() > 0 and second.max() < 64 and second.std() < 2 * np.sqrt(64 * 0.3 * 0.7)


def test_every_sample_is_drawn_before_any_is_drawn_again() -> None:
    sampler = LaneSampler(60, 4, strata=Strata(np.array([40, 20]), np.array([40, 80])))
    counts = np.zeros(120, int)
    for epoch in range(4):
        np.add.at(counts, np.concatenate(batches(sampler, 1, epoch)), 1)
        assert np.ptp(counts[:40]) == 0 and counts[40:].max() == 1
    assert (counts[:40] == 4).all() and (counts[40:] == 1).all()


def test_a_rank_keeps_the_same_part_in_every_epoch() -> None:
    strata = Strata(np.array([30, 70]), np.array([200, 50]))
    sampler = LaneSampler(100, 10, 1, 3, strata=strata)
    pieces = {next(iter(sampler.windows(epoch))).pieces for epoch in range(4)}
    assert len(pieces) == 1
    assert sum(stop - start for start, stop in pieces.pop()) < 250 / 2


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 2**63), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_c_and_numpy_shuffle_alike(lengths: list[int], seed: int, epoch: int) -> None:
    starts = np.r_[0, np.cumsum(lengths)]
    row_keys = keys(seed, epoch, np.arange(len(lengths)))
    one, two = np.arange(starts[-1]), np.arange(starts[-1])
    shuffle_rows(one, starts, row_keys)
    shuffle_rows(two, starts, row_keys, use_c=False)
    np.testing.assert_array_equal(one, two)
    for low, high in pairwise(starts):
        np.testing.assert_array_equal(np.sort(one[low:high]), np.arange(low, high))


def test_permutations_are_uniform() -> None:
    rows = 24_000
    x = np.tile(np.arange(4), rows)
    shuffle_rows(x, np.arange(rows + 1) * 4, keys(3, np.arange(rows)))
    _, counts = np.unique(x.reshape(rows, 4), axis=0, return_counts=True)
    chi_square = ((counts - rows / 24) ** 2 / (rows / 24)).sum()
    assert len(counts) == 24 and chi_square < 23 + 6 * np.sqrt(2 * 23)


def test_rows_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        read_rows(
            0, np.array([[0, 9]]), np.array([0]), np.empty(9, np.uint8), chunk_rows=8, row_bytes=1
        )


def write(folder: Path, context: Any, low: int, labels: np.ndarray, **more: Any) -> str:
    x = np.arange(low, low + len(labels), dtype=np.float32)[:, None]
    arrays = {"x": x, "label": labels} | more
    source = Source(
        len(labels), lambda low, high: {key: array[low:high] for key, array in arrays.items()}
    )
    write_dataset(source, folder, WriteOptions(2), context, lambda count: None)
    return str(folder)


@pytest.fixture
def sets(tmp_path: Path, context: Any) -> list[str]:
    rng = np.random.default_rng(0)
    first = np.r_[0, 1, 2, rng.choice(3, 37, p=[0.8, 0.15, 0.05])]
    return [
        write(tmp_path / "a", context, 0, first),
        write(tmp_path / "b", context, 40, np.arange(25) % 3),
    ]


@pytest.mark.parametrize("window_bytes", [1 << 20, 200])
@pytest.mark.parametrize(
    "draw",
    [
        Draw(),
        Draw((0.2, 0.8)),
        Draw(balance="classes"),
        Draw((3, 1), "sqrt", 91),
        Draw(epoch_samples=17),
    ],
)
def test_the_loader_of_a_mixture(
    sets: list[str], context: Any, draw: Draw, window_bytes: int
) -> None:
    reader = open_training(sets, context=context, driver="posix", verify=True)
    labels = reader.read([(0, 65)])["label"].copy()
    sampler = build_sampler(
        reader,
        replace(draw, label="label"),
        global_batch=8,
        ranks=(0, 1),
        seed=1,
        shuffle=True,
        window_bytes=window_bytes,
    )
    assert (sampler.window is None) == (window_bytes > 10_000)
    loader = Loader(reader, sampler)
    for epoch in range(2):
        wanted = batches(sampler, 1, epoch)
        found = [
            (b.arrays["x"][:, 0].copy(), b.arrays["label"].copy()) for b in loader.epoch(epoch)
        ]
        for (x, label), numbers in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(x, numbers)
            np.testing.assert_array_equal(label, labels[numbers])
        if draw.balance == "classes":
            assert np.ptp(np.bincount(np.concatenate([label for _, label in found]))) <= 1
    loader.close()
    reader.close()


def test_fields_must_agree(tmp_path: Path, context: Any, sets: list[str]) -> None:
    four = write(tmp_path / "four", context, 0, np.arange(8) % 4)
    more = write(tmp_path / "more", context, 0, np.arange(9) % 3, z=np.zeros((9, 2), np.float32))
    for other, words in ((four, "'label' has classes 4"), (more, "no field 'z'")):
        with pytest.raises(DataError, match=words) as caught:
            open_training([sets[0], other], context=context, driver="posix", verify=False)
        assert "manifest.json" in caught.value.where and caught.value.remedy


def test_a_class_without_samples(tmp_path: Path, context: Any) -> None:
    folder = write(tmp_path / "c", context, 0, np.array([0, 2, 0, 2, 2]))
    with (
        Reader(folder) as reader,
        pytest.raises(DataError, match="class 1 of 'label' has no sample"),
    ):
        Draw(balance="classes", label="label").strata(reader)


def test_pooled_statistics(sets: list[str], context: Any) -> None:
    reader = open_training(sets, context=context, driver="posix", verify=False)
    assert isinstance(reader, Mixture)
    statistics = reader.manifest.fields["x"].statistics
    assert statistics is not None
    assert statistics.mean == pytest.approx(np.arange(65).mean())
    assert statistics.std == pytest.approx(np.arange(65).std())
    assert reader.locate(40) == (str(Path(sets[1]) / "shard-00000.h5"), 0)
    reader.close()
