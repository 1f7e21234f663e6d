"""Chunks that are bad for reading samples, and the command that mends them."""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.data.chunks import LARGEST_CHUNK, PAGE, Layout, repack_command
from mpidl.data.hdf5 import h5py, open_file


def layout(path: Path, name: str = "x") -> Layout:
    with open_file(path) as file:
        return Layout.of(file[name])


@st.composite
def layouts(draw: Any) -> Layout:
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
    chunks = tuple(draw(st.integers(1, size)) for size in shape)
    return Layout(
        shape,
        draw(st.sampled_from([1, 4, 8])),
        draw(st.sampled_from([chunks, None])),
        draw(st.sampled_from([(), ("gzip",)])),
    )


@given(layouts())
def test_what_one_sample_costs(found: Layout) -> None:
    """Counted chunk by chunk."""
    sample = np.ones(found.shape[1:], np.int8)
    if found.chunks is None or (not found.filters and found.chunks[1:] == found.shape[1:]):
        assert found.read_bytes == found.sample_bytes == sample.size * found.item
        return
    steps = [range(0, size, c) for size, c in zip(found.shape[1:], found.chunks[1:], strict=True)]
    touched = math.prod(len(step) for step in steps)
    rows = found.chunks[0] if found.filters else 1
    piece = rows * math.prod(found.chunks[1:]) * found.item
    assert found.read_bytes == touched * max(PAGE, piece) >= found.sample_bytes
    better = Layout(found.shape, found.item, found.better_chunks(), found.filters)
    assert not better.is_bad


def test_chunks_stay_below_the_limit_of_hdf5() -> None:
    chunks = Layout((10, 2048, 2048, 2048), 4, None, ()).better_chunks()
    assert chunks[0] == 1 and math.prod(chunks) * 4 <= LARGEST_CHUNK


def test_what_mpidl_writes_is_good(make_dataset: Any) -> None:
    for options in ({}, {"compression": "gzip"}):
        folder, _ = make_dataset(50, 1, name=str(len(options)), **options)
        found = layout(folder / "shard-00000.h5")
        assert not found.is_bad and found.chunks == (50, 4, 3)


@pytest.mark.skipif(shutil.which("h5repack") is None, reason="h5repack is not installed")
def test_the_command_mends_the_chunks(tmp_path: Path) -> None:
    """A map of each day in chunks of one place over all days, as time series are stored."""
    x = np.random.default_rng(0).normal(size=(512, 64, 64)).astype(np.float32)
    path = tmp_path / "some days.nc"
    with h5py.File(path, "w") as file:
        file.create_dataset("g/x", data=x, chunks=(512, 8, 8), compression="gzip")
        file.create_dataset("good", data=x, chunks=(1, 64, 64))
    found = {name: layout(path, name) for name in ("g/x", "good")}
    assert found["g/x"].is_bad and not found["good"].is_bad
    # all chunks, 8 MiB, for each sample of 16 KiB
    assert found["g/x"].read_bytes == x.nbytes == 512 * found["g/x"].sample_bytes
    assert "512 times" in found["g/x"].describe_cost()
    command = repack_command(path, found)
    assert "-l g/x:CHUNK=16x64x64 " in command and "good" not in command
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    target = tmp_path / "some days.repacked.nc"
    assert layout(target, "g/x").chunks == (16, 64, 64)
    assert layout(target, "g/x").filters == ("gzip",) and not layout(target, "g/x").is_bad
    with open_file(target) as file:
        np.testing.assert_array_equal(file["g/x"][...], x)
