"""Samples for a model: checked, and told from others; how they are cut."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.comm.context import init
from mpidl.data.formats.source import Source, source_from_arrays
from mpidl.errors import DataError
from mpidl.inference.samples import RawSamples, identify, open_samples
from mpidl.inference.sharded import BATCH, BATCH_BYTES, batch_size, chunk_size
from mpidl.nn import Dense, Model
from mpidl.task import TASKS, FieldSpec, InputSpec
from mpidl.task.spec import TargetSpec

VECTORS = InputSpec("classification", (FieldSpec("x", (3,)),), TargetSpec((FieldSpec("y", ()),), 4))
TEXT = InputSpec("language_model", (FieldSpec("tokens", (3,)),), TargetSpec((), 11))


def raw(name: str, array: Any, spec: InputSpec, where: str = "a.npz") -> RawSamples:
    source: Source = source_from_arrays({name: array}, where)
    return RawSamples(source, spec, where)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_none(value: float) -> None:
    array = np.zeros((20, 3), np.float32)
    array[13, 1] = value
    samples = raw("other name", array, VECTORS)
    assert samples.read(0, 10)["x"].shape == (10, 3) and len(samples) == 20
    with pytest.raises(DataError, match=r"sample 13 has 'x' = .*must be finite") as caught:
        samples.read(10, 20)
    assert caught.value.where == "a.npz"


@pytest.mark.parametrize("token", [-1, 11, 1 << 40])
def test_tokens_beyond_the_vocabulary(token: int) -> None:
    """The model would read beyond the end of its embedding."""
    tokens = np.ones((9, 3), np.int64)
    tokens[4, 2] = token
    with pytest.raises(DataError, match=r"sample 4 has 'tokens' = .*must lie in \[0, 11\)"):
        raw("tokens", tokens, TEXT).read(2, 9)


def test_no_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((0, 3), np.float32))
    task = TASKS["classification"](TASKS["classification"].Options(), VECTORS)
    with pytest.raises(DataError, match="has no samples") as caught:
        open_samples([tmp_path / "a.npz"], task, init())
    assert "a.npz" in caught.value.where


def test_data_are_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"123")
    before = identify([path], {})
    assert identify([path], {}) == before != identify([path], {"label": ["y"]})
    os.utime(path, (1, 1))
    assert identify([path], {}) != before
    folder = tmp_path / "folder.zarr" / "c"
    folder.mkdir(parents=True)
    (folder / "0").write_bytes(b"1")
    before = identify([tmp_path / "folder.zarr"], {})
    (folder / "0").write_bytes(b"22")
    assert identify([tmp_path / "folder.zarr"], {}) != before
    dataset = tmp_path / "set"
    dataset.mkdir()
    (dataset / "manifest.json").write_text("{}")
    before = identify([dataset], {})
    os.utime(dataset / "manifest.json", (1, 1))
    dataset.rename(tmp_path / "moved")
    assert identify([tmp_path / "moved"], {}) == before, "the digest of its content, not its place"
    with pytest.raises(DataError):
        identify([tmp_path / "none"], {})


@given(
    inputs=st.integers(1, 300),
    units=st.integers(1, 3000),
    samples=st.integers(1, 10**9),
)
def test_passes_and_chunks_fit_memory(inputs: int, units: int, samples: int) -> None:
    model = Model([Dense(units)], (inputs,), NumpyOps())
    predictor: Any = SimpleNamespace(model=model, shape=(units,))
    batch, chunk = batch_size(predictor), chunk_size(predictor, samples)
    assert batch == BATCH or 2 * batch * 4 * (inputs + 2 * units) > BATCH_BYTES
    assert batch == 1 or batch * 4 * (inputs + 2 * units) <= BATCH_BYTES
    assert chunk % batch == 0 and 1 <= chunk // batch <= 16
    assert chunk == batch or chunk * 4 * (inputs + units) <= 16 << 20
    assert chunk // batch <= 4 or samples // chunk >= 64, "enough chunks for uneven ranks"
