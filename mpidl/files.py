"""Files that are complete or not there, and errors of reading told apart: out of reach now, or damaged."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpidl.errors import ConfigError, DataError, errno_of, os_remedy, os_words, strerror, unreadable

WRONG_PATH = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
COPY = "copy the file again from where it was made, or make it anew"


@contextmanager
def beside(path: Path | str) -> Iterator[Path]:
    """A path beside `path` to write to; at the end of the block it is forced to disk and renamed into place.

    No reader ever sees half of a file, and an error in the block leaves nothing behind. Raises OSError.
    """
    final = Path(path)
    partial = final.with_name(final.name + ".partial")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(final)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(final.parent)


def write_beside(path: Path | str, content: bytes) -> None:
    """Write `content` to `path`, complete or not at all (see `beside`)."""
    with beside(path) as partial:
        partial.write_bytes(content)


def check_folder(path: Path) -> None:
    """ConfigError before any work if `path` cannot be a new file in an existing folder."""
    if path.is_dir():
        raise ConfigError("is a folder", where=str(path), remedy="name a file in it")
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            "its folder does not exist", where=str(path), remedy="make the folder first"
        )


def reserve(path: Path | str, size: int) -> None:
    """Claim `size` bytes of disk for a file, so that a full disk is noticed here; raises OSError. Not every file system can."""
    with open(path, "rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def sync_folder(folder: Path) -> None:
    """Force the entries of `folder` to disk, so that a rename in it survives a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def reading(path: Path | str, remedy: str = COPY) -> Iterator[None]:
    """Errors of reading `path` in this block become UnreadableError where it is out of reach now, else DataError.

    remedy: for a file that is damaged.
    """
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises all three
        raise read_error(error, path, remedy) from error


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Errors of the operating system in writing `path` in this block, also those that HDF5 hides, become DataError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        code = errno_of(error)
        if not code:
            raise
        raise DataError(
            f"cannot be written: {strerror(code)}", where=str(path), remedy=os_remedy(code)
        ) from error


def read_error(error: Exception, path: Path | str, remedy: str = COPY) -> DataError:
    """What `error`, raised while reading `path`, means for the file."""
    code, where = errno_of(error), str(path)
    if code == errno.ENOENT:
        return DataError("the file does not exist", where=where, remedy="check the path")
    if code in WRONG_PATH:
        return DataError(f"cannot be opened: {strerror(code)}", where=where, remedy=os_remedy(code))
    return unreadable(code, where) or DataError(
        f"is damaged: {os_words(error)}", where=where, remedy=remedy
    )
