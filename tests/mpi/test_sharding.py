"""Parts that several ranks write are those that one rank would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.cli.main import main
from mpidl.data import Reader
from mpidl.data.manifest import load_manifest
from mpidl.data.split import by_class, divide

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("stratify", [False, True])
def test_parts_and_statistics_for_any_ranks(context: Any, tmp_path: Path, stratify: bool) -> None:
    rng = np.random.default_rng(7)
    arrays = {"x": rng.normal(1e4, 1.0, (101, 6, 5, 2)), "label": np.arange(101) % 3}
    folder = Path(context.comm.bcast(str(tmp_path)))
    if context.is_root:
        np.savez(folder / "a.npz", **arrays)
    context.comm.Barrier()
    command = ["shard", str(folder / "a.npz"), "--out", str(folder / "set"), "--shards", "5"]
    command += ["--split", "0.7,0.3", "--seed", "5", *(["--stratify"] if stratify else [])]
    assert main(command) == 0
    groups = by_class(arrays["label"]) if stratify else [np.arange(101)]
    for name, numbers in divide(groups, {"train": 0.7, "test": 0.3}, 5).items():
        with Reader(folder / "set" / name) as reader:
            found = reader.read([(0, len(numbers))])
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array[numbers])
        statistics = load_manifest(folder / "set" / name).fields["x"].statistics
        assert statistics is not None
        flat = arrays["x"][numbers].reshape(-1, 2)
        np.testing.assert_allclose(statistics.channel_means, flat.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(statistics.channel_stds, flat.std(axis=0), rtol=1e-8)
    context.comm.Barrier()
