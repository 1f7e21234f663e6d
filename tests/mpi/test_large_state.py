"""Checkpoints and one-sided windows cut what MPI libraries cannot count into several messages."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.collectives.window import Window
from mpidl.comm import transport
from mpidl.optim import RunState
from mpidl.train import checkpoint as ckpt
from tests.mpi.test_counts import refusing
from tests.train.test_checkpoint import meta

pytestmark = pytest.mark.mpi
LENGTH = 250_001


def test_checkpoints_are_loaded_in_pieces(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MOST", 70_000)
    folder = Path(context.on_root(tempfile.mkdtemp, "making a folder", str))
    buffers = {
        "parameters": np.arange(LENGTH, dtype=np.float32),
        "optimizer.momentum": np.arange(LENGTH) / 7,
    }
    state = RunState(
        {"slow": np.arange(2.0 * LENGTH).reshape(2, LENGTH)},
        {"own": np.full(context.rank + 3, context.rank)},
    )
    path = ckpt.save(folder, meta(1), buffers, context, keep=2, best=False, state=state)
    small = replace(context, comm=refusing(context.comm))
    found = ckpt.load_for(small, lambda: ckpt.read(path), "test", own=True)
    for name, array in buffers.items():
        np.testing.assert_array_equal(found.buffers[name], array)
    np.testing.assert_array_equal(found.state.shared["slow"], state.shared["slow"])
    np.testing.assert_array_equal(found.state.own["own"], state.own["own"])
    context.barrier()
    if context.is_root:
        shutil.rmtree(folder)


def test_windows_are_read_and_changed_in_pieces(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MOST", 70_000)
    window = Window(context.comm, LENGTH, np.float64)
    context.barrier()
    window.accumulate((context.rank + 1) % context.size, np.arange(LENGTH) + context.rank, 0)
    context.barrier()
    out = np.empty(LENGTH - 5)
    window.get(context.rank, out, 5)
    np.testing.assert_array_equal(out, np.arange(5, LENGTH) + (context.rank - 1) % context.size)
    context.barrier()
    window.free()
