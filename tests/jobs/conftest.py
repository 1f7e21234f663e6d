"""A small data set and a small run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.comm.context import init
from mpidl.data.formats.source import Source
from mpidl.data.writer import WriteOptions, write_dataset
from tests.jobs.helpers import POOLS

CONFIG = """
[data]
train = "{folder}/train"
test = "{folder}/test"
[model]
name = "cnn"
channels = [4, 8]
hidden = [16]
[optim]
lr = 0.05
warmup_epochs = 0.5
[train]
epochs = 3
global_batch = 24
log_every = 1
output = "{folder}/run"
"""


@pytest.fixture(scope="session", autouse=True)
def pools() -> Iterator[None]:
    """At the end of the tests all ranks that stayed for them leave MPI in order."""
    yield
    POOLS.close()


def blobs(samples: int, seed: int) -> dict[str, np.ndarray]:
    """Images of 10 x 10 bytes whose brightest quarter is the class."""
    rng = np.random.default_rng(seed)
    image, label = (
        rng.integers(0, 120, (samples, 10, 10), dtype=np.uint8),
        rng.integers(0, 4, samples),
    )
    for i, k in enumerate(label):
        image[i, k // 2 * 5 : k // 2 * 5 + 5, k % 2 * 5 : k % 2 * 5 + 5] += np.uint8(60)
    return {"image": image, "label": label}


def write(folder: Path, arrays: dict[str, np.ndarray], shards: int = 3, **options: Any) -> None:
    source = Source(
        len(arrays["label"]),
        lambda low, high: {name: array[low:high] for name, array in arrays.items()},
    )
    write_dataset(
        source, folder, WriteOptions(shards, overwrite=True, **options), init(), lambda count: None
    )


def write_run(folder: Path) -> None:
    """Write train and test data and run.toml.

    500 samples, 21 steps an epoch, the last one with 20 samples.
    """
    write(folder / "train", blobs(500, 0))
    write(folder / "test", blobs(101, 1), 2)
    (folder / "run.toml").write_text(CONFIG.format(folder=folder))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder for one test, see `write_run`."""
    write_run(tmp_path)
    return tmp_path
