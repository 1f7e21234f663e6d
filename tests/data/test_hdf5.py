"""HDF5 files: out of reach now or damaged, locks, full disks."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpidl.data import Reader, hdf5
from mpidl.data.hdf5 import h5py, open_file
from mpidl.errors import ENOTSUPP, DataError, MpidlError, UnreadableError, errno_of, wrap
from mpidl.files import read_error

NOW = {
    errno.EAGAIN: "HDF5_USE_FILE_LOCKING",
    errno.ENOLCK: "HDF5_USE_FILE_LOCKING",
    ENOTSUPP: "HDF5_USE_FILE_LOCKING",
    errno.EACCES: "permissions",
    errno.EPERM: "permissions",
    errno.EIO: "server",
    errno.ESTALE: "server",
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "fs.file-max",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a.h5"
    with h5py.File(made, "w") as file:
        file["x"] = np.arange(1000)
    return made


@pytest.mark.parametrize("code", NOW)
@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_what_the_operating_system_refuses_is_not_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise kind(
            f"Unable to open file (unable to lock file, errno = {code}, error message = 'no', "
            "buf = 0x7ffd1aed3b30)"
        )

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(UnreadableError) as caught:
        open_file(path)
    assert str(path) in caught.value.where and NOW[code] in caught.value.remedy
    assert "nothing says that the file is damaged" in caught.value.what and "0x7ff" not in str(
        caught.value
    )


@pytest.mark.parametrize("code", NOW)
def test_the_operating_system_is_asked_where_hdf5_says_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As through mpio, whose messages hold no error number."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError("Unable to open file (MPI_File_open failed)")

    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(code, "no")

    monkeypatch.setattr(h5py, "File", refuse)
    with monkeypatch.context() as patch, pytest.raises(UnreadableError):
        patch.setattr(os, "pread", fail)
        open_file(path)
    with pytest.raises(DataError, match="is damaged") as caught:
        open_file(path)
    assert not isinstance(caught.value, UnreadableError)


LOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_readers_take_no_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    try:
        with open_file(path) as file:
            assert file["x"][7] == 7
        with pytest.raises(UnreadableError, match="HDF5_USE_FILE_LOCKING"):
            open_file(path, "r+")
        monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
        open_file(path, "r+").close()
    finally:
        holder.communicate(b"")


def test_too_many_open_files(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    held = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(UnreadableError, match="ulimit -n"):
            open_file(path)
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_damaged_files_say_what_is_wrong(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    (tmp_path / "text.h5").write_text("hello " * 400)
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "short.h5").write_bytes(raw[:1000])
    (tmp_path / "torn.h5").write_bytes(raw[:8] + b"\xff" * 88 + raw[96:])
    (tmp_path / "circle.h5").symlink_to(tmp_path / "circle.h5")
    (tmp_path / "behind-a-user-block.h5").write_bytes(b"\0" * 512 + raw)
    for name, words in [
        ("text.h5", "not an HDF5 file"),
        ("empty.h5", "not an HDF5 file"),
        ("torn.h5", "is damaged"),
        ("short.h5", f"truncated: it has 1,000 bytes, and {len(raw):,} were written"),
        (".", "Is a directory"),
        ("x" * 300, "name too long"),
        ("circle.h5", "symbolic links"),
        ("none.h5", "does not exist"),
        ("text.h5/a.h5", "Not a directory"),
    ]:
        with pytest.raises(DataError, match=words) as caught:
            open_file(tmp_path / name)
        assert not isinstance(caught.value, UnreadableError) and caught.value.remedy
        assert "shard" not in caught.value.remedy, "the file may be a checkpoint"
    open_file(tmp_path / "behind-a-user-block.h5").close()
    with pytest.raises(DataError, match="No such file"):
        open_file(tmp_path / "none" / "a.h5", "w")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_shard_out_of_reach_is_not_called_damaged(
    make_dataset: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    folder, _ = make_dataset(20, 2)
    with Reader(folder) as reader:
        monkeypatch.setattr("mpidl.data.direct.read_rows", fail)
        with pytest.raises(UnreadableError, match=r"shard-00001\.h5"):
            reader.read([(15, 18)])
    monkeypatch.setattr("mpidl.data.shard_file.content_sha256", fail)
    with pytest.raises(UnreadableError, match=r"shard-00000\.h5"):
        Reader(folder)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UnreadableError, match=r"manifest\.json"):
        Reader(folder)


def test_a_full_disk_in_the_words_of_hdf5_and_rust() -> None:
    torn = RuntimeError(
        "Can't decrement id ref count (file write failed: time = now\n, errno = 28, "
        "error message = 'No', buf = 0x1)"
    )
    rust = Exception("Error while serializing: I/O error: File too large (os error 27)")
    assert (errno_of(torn), errno_of(rust), errno_of(ValueError("errno"))) == (
        errno.ENOSPC,
        errno.EFBIG,
        0,
    )
    error = wrap(torn, "sharding")
    assert (
        "No space left" in error.what
        and "free space" in error.remedy
        and "train.output" not in error.remedy
    )
    assert "\n" not in error.what and "ulimit -f" in wrap(rust, "x").remedy
    assert isinstance(read_error(OSError(errno.EINVAL, "bad offset"), "a.h5"), DataError)


def test_hdf5_without_the_locking_property_still_opens(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "LOCKING", False)
    open_file(path).close()


def test_the_family() -> None:
    assert issubclass(UnreadableError, DataError) and issubclass(DataError, MpidlError)


FULL = """
import gc, resource, sys
import numpy as np
from mpidl.data.hdf5 import early_allocation, open_file
from mpidl.files import writing
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for options in ({"dcpl": early_allocation()}, {}, {"compression": "gzip"}):
    for limit in (0, 90, 20_000, 140_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with writing("it"), open_file(sys.argv[1], "w") as file:
                file.create_dataset("x", (40_000,), "f4", chunks=(10_000,), **options)
                file["x"][:] = np.random.default_rng(0).random(40_000)
                file.attrs["more"] = np.arange(5_000)
        except Exception as error:
            print(error)
        gc.collect()
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        with open_file(sys.argv[1], "w") as file:
            file["x"] = [1]
"""


def test_hdf5_survives_a_full_disk(tmp_path: Path) -> None:
    """HDF5 ends the process with a segmentation fault when it frees what it could not write."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "a.h5"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.count("it: cannot be written: File too large\n  what to do:") == 12, (
        done.stdout
    )


def test_a_file_written_through_the_door_is_what_hdf5_writes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((50, 7))
    for name, mode in (("a", "w"), ("b", "r+")):
        with open_file(tmp_path / "a.h5", mode) as file:
            file.create_dataset(name, data=x, chunks=(9, 7), compression="gzip")
            with pytest.raises(DataError, match="a lock"):
                open_file(tmp_path / "a.h5", "w")
    with open_file(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["a"][...], x)
        np.testing.assert_array_equal(file["b"][...], x)
    with open_file(tmp_path / "a.h5", "w") as file:
        file["c"] = [1]
    with open_file(tmp_path / "a.h5") as file:
        assert list(file) == ["c"]


def test_a_forged_enumeration_of_wide_numbers_is_not_read(tmp_path: Path) -> None:
    """h5py reads a member of any enumeration into 8 bytes of its stack."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.array([True, False])
        file["x"].attrs["_FillValue"] = np.array([True])
    raw = bytearray(path.read_bytes())
    # class 8 (enumeration), version 1, 2 members, then the size (HDF5 File Format, IV.A.2.d)
    head = bytes([0x18, 2, 0, 0, 1, 0, 0, 0])
    assert raw.count(head) == 2
    path.write_bytes(bytes(raw).replace(head, bytes([0x18, 2, 0, 0, 200, 0, 0, 0])))
    with pytest.raises(DataError, match="does not hold numbers"), open_file(path) as file:
        hdf5.trusted_dataset(file, "x", path)
