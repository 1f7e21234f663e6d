"""Reading around HDF5 gives what HDF5 gives, or steps aside."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.data.direct import DirectRows, PlainRows
from mpidl.data.hdf5 import h5py

X = np.random.default_rng(0).integers(0, 256, (53, 4, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Any, int, Path]]:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as made:
        made["plain"] = X
        made.create_dataset("chunked", data=X, chunks=(7, 4, 3))
        made.create_dataset("packed", data=X, chunks=(7, 4, 3), compression="gzip")
        made.create_dataset("summed", data=X, chunks=(7, 4, 3), fletcher32=True)
        made.create_dataset("cut", data=X, chunks=(7, 2, 3))
        made.create_dataset("big endian", data=X.astype(">i4"))
    handle = os.open(path, os.O_RDONLY)
    with h5py.File(path, "r") as opened:
        yield opened, handle, path
    os.close(handle)


@given(
    st.lists(st.integers(0, 53), max_size=10, unique=True), st.sampled_from(["plain", "chunked"])
)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_ranges(file: tuple[Any, int, Path], cuts: list[int], name: str) -> None:
    opened, handle, _ = file
    edges = sorted(cuts)[: len(cuts) // 2 * 2]
    ranges = [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)]
    wanted = np.concatenate([X[:0], *(X[start:stop] for start, stop in ranges)])
    out = np.full_like(wanted, 7)
    rows = DirectRows.make(opened[name], PlainRows(handle), X.dtype)
    assert rows is not None
    rows.read(ranges, out)
    np.testing.assert_array_equal(out, wanted)


WIDE = np.random.default_rng(1).integers(0, 256, (2500, 301), dtype=np.uint8)


@given(
    cuts=st.lists(st.integers(0, 2500), max_size=12, unique=True),
    wide=st.booleans(),
    contiguous=st.booleans(),
    threads=st.integers(1, 4),
    compiled=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_rows_go_to_their_places(
    cuts: list[int], wide: bool, contiguous: bool, threads: int, compiled: bool, seed: int
) -> None:
    """Wide rows come by lists of places, more of them than one list holds; narrow ones do not."""
    data = WIDE if wide else WIDE[:, :9].copy()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        with h5py.File(f"{name}/a.h5", "w") as made:
            made.create_dataset(
                "x", data=data, chunks=None if contiguous else (1100, data.shape[1])
            )
        if not compiled:
            patch.setattr("mpidl.data.native._bound", lambda name: None)
        handle = os.open(f"{name}/a.h5", os.O_RDONLY)
        with h5py.File(f"{name}/a.h5") as opened:
            rows = DirectRows.make(opened["x"], PlainRows(handle), data.dtype)
            assert rows is not None
            edges = sorted(cuts)[: len(cuts) // 2 * 2]
            ranges = [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)]
            wanted = np.concatenate([data[:0], *(data[low:high] for low, high in ranges)])
            out = np.full((len(wanted) + 3, data.shape[1]), 7, np.uint8)
            place = np.random.default_rng(seed).permutation(len(out))[: len(wanted)]
            rows.read(ranges, out, place, threads)
            np.testing.assert_array_equal(out[place], wanted)
            assert (np.delete(out, place, axis=0) == 7).all()
            out = np.empty_like(wanted)
            rows.read(ranges, out)
            np.testing.assert_array_equal(out, wanted)
        os.close(handle)


def test_places_outside_of_the_memory_are_refused(file: tuple[Any, int, Path]) -> None:
    opened, handle, _ = file
    rows = DirectRows.make(opened["plain"], PlainRows(handle), X.dtype)
    assert rows is not None
    for place in ([0, 1, 3], [0, 1, -1], [0, 1]):
        with pytest.raises(ValueError, match="do not fit"):
            rows.read([(0, 3)], np.empty_like(X[:3]), np.array(place))


@pytest.mark.parametrize("name", ["packed", "summed", "cut", "big endian"])
def test_what_hdf5_must_read(file: tuple[Any, int, Path], name: str) -> None:
    opened, handle, _ = file
    wanted = np.dtype(np.int32) if name == "big endian" else X.dtype
    assert DirectRows.make(opened[name], PlainRows(handle), wanted) is None


def test_a_file_that_became_shorter(file: tuple[Any, int, Path]) -> None:
    opened, handle, path = file
    rows = DirectRows.make(opened["chunked"], PlainRows(handle), X.dtype)
    assert rows is not None
    os.truncate(path, opened["chunked"].id.get_chunk_info(7).byte_offset + 3)
    with pytest.raises(OSError, match="the file ends"):
        rows.read([(0, 53)], np.empty_like(X))
