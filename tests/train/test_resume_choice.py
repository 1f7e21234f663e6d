"""Which checkpoint a run goes on from: only proven damage is passed over."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mpidl.data import hdf5
from mpidl.errors import CheckpointError
from mpidl.optim import RunState
from mpidl.train import checkpoint as ckpt
from tests.train.test_checkpoint import meta, save

LOCKER = """
import fcntl, sys, time
file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def two(tmp_path: Path, context: Any) -> Path:
    """A folder with the checkpoints of steps 846 and 940."""
    for step in (846, 940):
        save(tmp_path, step, context)
    return tmp_path


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garble(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGE = {
    "truncated": cut,
    "a flipped bit": garble,
    "empty": lambda path: path.write_bytes(b""),
    "no HDF5": lambda path: path.write_bytes(b"x" * 9999),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_passed_over_and_the_loss_is_said(two: Path, how: str) -> None:
    DAMAGE[how](two / "step-00000940.h5")
    said: list[str] = []
    assert ckpt.load_latest(two, said.append).meta.step == 846
    text = "\n".join(said)
    assert "WARNING" in text and "step-00000940.h5" in text and "94 step(s) are lost" in text


def test_a_lock_of_another_process_does_not_matter(two: Path) -> None:
    """Checkpoints are renamed into place when they are complete: reading takes no lock."""
    locker = subprocess.Popen(
        [sys.executable, "-c", LOCKER, two / "step-00000940.h5"], stdout=subprocess.PIPE
    )
    assert locker.stdout is not None
    try:
        locker.stdout.readline()
        assert ckpt.load_latest(two, print).meta.step == 940
    finally:
        locker.kill()
        locker.wait()


@pytest.mark.parametrize(
    "code", [errno.EAGAIN, errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE, errno.ENOLCK, 524]
)
def test_what_cannot_be_read_now_is_never_passed_over(
    two: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier checkpoint would silently throw work away."""
    real = hdf5.h5py.File

    def failing(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith("940.h5"):
            raise OSError(
                f"Unable to synchronously open file (errno = {code}, error message = 'x')"
            )
        return real(path, *args, **options)

    monkeypatch.setattr(hdf5.h5py, "File", failing)
    with pytest.raises(CheckpointError, match="cannot be read now") as caught:
        ckpt.load_latest(two, print)
    assert not isinstance(caught.value, ckpt.DamagedCheckpoint)
    assert "step-00000940.h5" in str(caught.value) and "--resume-from" in caught.value.remedy


def test_errors_in_the_middle_of_reading_are_told_apart_too(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hdf5, "trusted_dataset", failing)
    with pytest.raises(CheckpointError, match="cannot be read now"):
        ckpt.load_latest(two, print)


def test_a_folder_that_cannot_be_read_is_not_empty(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(folder: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(PermissionError):
        ckpt.list_checkpoints(two)


def test_a_newer_format_stops_the_job(tmp_path: Path, context: Any) -> None:
    save(tmp_path, 1, context)
    newer = msgspec.structs.replace(meta(2), version=ckpt.VERSION + 1)
    ckpt.save(tmp_path, newer, {"parameters": np.zeros(3, np.float32)}, context, keep=2, best=False)
    with pytest.raises(CheckpointError, match=f"version {ckpt.VERSION + 1}"):
        ckpt.load_latest(tmp_path, print)


def test_later_checkpoints_are_set_aside_not_dropped(two: Path, context: Any) -> None:
    """After resuming from step 846 that of step 940 belongs to another course of the run."""
    said: list[str] = []
    ckpt.set_aside_later(two, two / "step-00000846.h5", 846, said.append)
    save(two, 850, context)
    assert [path.name for path in ckpt.list_checkpoints(two)] == [
        "step-00000850.h5",
        "step-00000846.h5",
    ]
    assert (two / "step-00000940.h5.superseded").is_file() and "940" in said[0]


def test_nothing_that_was_set_aside_is_written_over(two: Path, context: Any) -> None:
    """Also best.h5 of the other course, which a worse one would replace."""
    for accuracy in (0.5, 0.7):
        newest = msgspec.structs.replace(meta(940), best_score=accuracy)
        ckpt.save(two, newest, {"parameters": np.zeros(3)}, context, keep=2, best=True)
        said: list[str] = []
        ckpt.set_aside_later(two, two / "step-00000846.h5", 846, said.append)
        assert len(said) == 2
    kept = [
        "best.h5.superseded",
        "best.h5.superseded-2",
        "step-00000940.h5.superseded",
        "step-00000940.h5.superseded-2",
    ]
    assert sorted(path.name for path in two.glob("*superseded*")) == kept
    assert [ckpt.read(two / name).meta.best_score for name in kept] == [0.5, 0.7, 0.5, 0.7]
    assert not (two / ckpt.BEST).exists()


def test_run_state_comes_back(tmp_path: Path, context: Any) -> None:
    state = RunState(
        {"a:b (c to d)": np.arange(6.0).reshape(2, 3)}, {"mine": np.arange(4, dtype=np.uint32)}
    )
    state.set_numbers(own=True, count=7)
    buffers = {"parameters": np.ones(5, np.float32)}
    path = ckpt.save(tmp_path, meta(1), buffers, context, keep=2, best=False, state=state)
    found = ckpt.load_for(context, lambda: ckpt.read(path), "test", own=True)
    assert list(found.buffers) == ["parameters"]
    assert found.state.shared.keys() == state.shared.keys() and found.state.own.keys() == {
        "mine"
    }  # the count is the shared one
    for held, wanted in ((found.state.shared, state.shared), (found.state.own, state.own)):
        for name in held:
            np.testing.assert_array_equal(held[name], wanted[name])
            assert held[name].dtype == wanted[name].dtype
    assert found.state.take_number("count", 0) == 7


def test_a_missing_file_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        ckpt.read(tmp_path / "step-00000001.h5")


def test_bad_own_state_is_damage(tmp_path: Path, context: Any) -> None:
    """What is only verified, not loaded, counts too."""
    state = RunState(own={"residual": np.full(4096, 3.25)})
    save(tmp_path, 1, context)
    path = ckpt.save(
        tmp_path, meta(2), {"parameters": np.ones(5)}, context, keep=2, best=False, state=state
    )
    shutil.copy(path, tmp_path / "copy.h5")
    raw = path.read_bytes()
    at = raw.index(np.full(16, 3.25).tobytes())
    path.write_bytes(raw[:at] + b"\x01" + raw[at + 1 :])
    with pytest.raises(ckpt.DamagedCheckpoint, match="residual"):
        ckpt.read(path)
    assert ckpt.load_latest(tmp_path, print).meta.step == 1
