"""Data sets that several ranks write are those that one rank writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data import Reader
from mpidl.data.formats.source import Source
from mpidl.data.split import Split, divide, split_samples
from mpidl.data.writer import WriteOptions, write_parts

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("stratify", [False, True])
def test_parts_and_statistics_for_any_ranks(context: Any, tmp_path: Path, stratify: bool) -> None:
    rng = np.random.default_rng(7)
    arrays = {
        "x": rng.normal(1e4, 1.0, (101, 6, 2)),
        "target": rng.normal(size=(101, 3)) if not stratify else np.arange(101) % 3,
    }
    source = Source(
        101, lambda low, high: {name: array[low:high] for name, array in arrays.items()}
    )
    split = Split.parse("0.7,0.3", None, 5, stratify)
    folder = Path(context.comm.bcast(str(tmp_path))) / "set"
    parts = divide(source, split, context)
    manifests = write_parts(source, parts, folder, WriteOptions(5), context, lambda count: None)
    expected = split_samples(101, split, arrays["target"] if stratify else None)
    for name, numbers in expected.items():
        with Reader(folder / name) as reader:
            found = reader.read([(0, len(numbers))])
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array[numbers])
        fields = manifests[name].fields
        for key in ("x",) if stratify else ("x", "target"):
            statistics = fields[key].statistics
            assert statistics is not None
            flat = arrays[key][numbers].reshape(-1, arrays[key].shape[-1])
            np.testing.assert_allclose(statistics.channel_means, flat.mean(0), rtol=1e-12)
            np.testing.assert_allclose(statistics.channel_stds, flat.std(0), rtol=1e-9)
    context.comm.Barrier()
