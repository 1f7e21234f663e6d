"""Tables of Apache Arrow, written by pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data.formats import detect_format, open_source
from mpidl.data.manifest import Arrays
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import DataError

WORDS = np.array(["zebra", "ant", "cow"])


def write(path: Path, seed: int = 0, **more: Any) -> Arrays:
    """A table of 20 rows in groups of 7; its values."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    rng = np.random.default_rng(seed)
    held = {
        "a": rng.standard_normal(20).astype(np.float32),
        "n": rng.integers(-5, 5, 20),
        "v": rng.standard_normal((20, 3)),
        "kind": WORDS[rng.integers(0, 3, 20)],
    }
    columns = {name: pa.array(values.tolist()) for name, values in held.items() if name != "v"}
    columns["v"] = pa.FixedSizeListArray.from_arrays(pa.array(held["v"].reshape(-1)), 3)
    if more.pop("dictionary", False):
        columns["kind"] = columns["kind"].dictionary_encode()
    table = pa.table(columns | {name: pa.array(values) for name, values in more.items()})
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=7)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, chunksize=7)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return held


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_tables_are_read_in_any_range(tmp_path: Path, suffix: str, dictionary: bool) -> None:
    paths = [tmp_path / f"{name}.{suffix}" for name in "xy"]
    parts = [write(path, seed, dictionary=dictionary) for seed, path in enumerate(paths)]
    held = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert detect_format(paths[0]) == "parquet"
    source = open_source(paths, "kind")
    assert source.samples == 40 and source.class_names == ("ant", "cow", "zebra")
    for start, stop in ((0, 40), (5, 9), (15, 25), (39, 40), (3, 3)):
        arrays = source.read(start, stop)
        expected = np.column_stack([held["a"], held["n"]]).astype(np.float32)
        np.testing.assert_array_equal(arrays["features"], expected[start:stop])
        np.testing.assert_array_equal(arrays["v"], held["v"][start:stop])
        words = np.array(source.class_names)[arrays["label"]]
        np.testing.assert_array_equal(words, held["kind"][start:stop])


def test_tables_that_cannot_be_used(tmp_path: Path, context: Any) -> None:
    path = tmp_path / "a.parquet"
    write(path, gap=[None if row == 9 else 1.0 for row in range(20)])
    with pytest.raises(DataError, match="row 9 has no value in column 'gap'"):
        open_source([path], "kind").read(0, 20)
    write(path, bad=[np.nan] * 20)
    with pytest.raises(DataError, match="NaN"):
        source = open_source([path], "kind")
        write_dataset(source, tmp_path / "set", WriteOptions(1), context, lambda count: None)
    for label, words in ((None, "column 'kind' is string"), ("sort", "no column 'sort'")):
        with pytest.raises(DataError, match=words) as caught:
            open_source([path], label)
        assert "a.parquet" in caught.value.where and "--label" in caught.value.remedy
    write(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="other columns"):
        open_source([path, tmp_path / "b.parquet"], "kind")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_torn_tables(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be read"):
        open_source([path], "kind")
