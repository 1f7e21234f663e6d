"""Small data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data.formats.source import Source
from mpidl.data.writer import WriteOptions, write_dataset


@pytest.fixture
def make_dataset(tmp_path: Path, context: Any) -> Any:
    """make_dataset(samples, shards=3, ...) -> (folder, arrays); elements of sample i are i."""

    def make(
        samples: int = 50, shards: int = 3, name: str = "set", **options: Any
    ) -> tuple[Path, dict[str, np.ndarray]]:
        arrays = {
            "x": np.broadcast_to(
                np.arange(samples, dtype=np.float32)[:, None, None], (samples, 4, 3)
            ).copy(),
            "label": np.arange(samples) % 5,
        }
        source = Source(
            samples, lambda low, high: {key: array[low:high] for key, array in arrays.items()}
        )
        folder = tmp_path / name
        write_dataset(source, folder, WriteOptions(shards, **options), context, lambda count: None)
        return folder, arrays

    return make
