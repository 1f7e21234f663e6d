"""Checkpoints that cannot be written, on several ranks."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from mpidl.data import hdf5
from mpidl.errors import CheckpointError
from mpidl.train import checkpoint as ckpt
from mpidl.train.checkpoint import writer
from tests.mpi.test_resume import STOP, folder, skip_unless, train  # noqa: F401

pytestmark = pytest.mark.mpi


def test_a_write_that_fails_on_one_rank_fails_on_all_and_leaves_nothing_open(
    context: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 would close the file when the process ends: collectively, after the end of MPI."""
    skip_unless(context, 2, 3)
    train(context, folder, "allreduce", "full", train_max_steps=STOP)
    write = writer._write_piece

    def failing(file: Any, name: str, start: int, array: Any) -> Any:
        if context.rank == 1 and name == "parameters":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, name, start, array)

    monkeypatch.setattr(writer, "_write_piece", failing)
    before = open_files()
    with pytest.raises(CheckpointError, match="No space left"):
        train(context, folder, "allreduce", "full", resume=True)
    assert open_files() <= before
    context.barrier()  # rank 0 removes the file after the error has reached all
    with context.fail_together("looking"):
        left = folder / "full" / "checkpoints"
        assert ckpt.list_checkpoints(left)[0].name == f"step-{STOP:08d}.h5" and not list(
            left.glob("*.partial")
        )


def open_files() -> int:
    h5f = hdf5.h5py.h5f
    return sum(b".partial" in h5f.get_name(one) for one in h5f.get_obj_ids(types=h5f.OBJ_FILE))
