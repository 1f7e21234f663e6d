"""Writes files so that they are complete or absent; tells unreadable files from damaged ones."""

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
def write_atomically(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path to write to, published as `path` at the end of the block.

    No reader ever sees half of a file, and an error in the block leaves nothing behind.

    Args:
        path: The final name.
        durable: Wait until the disk has it, which a power failure does not undo then.

    Raises:
        OSError: The file system refuses.
    """
    final = Path(path)
    partial = partial_path(final)
    try:
        yield partial
        if durable:
            publish(partial, final)
        else:
            partial.replace(final)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_file(path: Path | str, content: bytes) -> None:
    """Write `content` to `path`, see `write_atomically`."""
    with write_atomically(path) as partial:
        partial.write_bytes(content)


def partial_path(path: Path) -> Path:
    """Where a file or folder is written before it is published."""
    return path.with_name(path.name + ".partial")


def publish(partial: Path, final: Path) -> None:
    """Force a complete file or folder to disk, and rename it to its final name.

    Raises:
        OSError: The file system refuses; `final` is as it was.
    """
    sync(partial)
    partial.replace(final)
    sync(final.parent)


def publish_new(partial: Path, final: Path) -> bool:
    """As `publish`, if there is no `final`, which is checked as it is made.

    Returns:
        Whether it was published; else both are as they were.

    Raises:
        OSError: The file system refuses.
    """
    sync(partial)
    try:
        os.link(partial, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if final.exists():  # a file system without links: what is made just now is replaced
            return False
        partial.replace(final)
    else:
        partial.unlink()
    sync(final.parent)
    return True


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_folder(path: Path) -> None:
    """Refuse a path that cannot be a new file, before any work.

    Raises:
        ConfigError: It is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise ConfigError("is a folder", where=str(path), remedy="name a file in it")
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            "its folder does not exist", where=str(path), remedy="make the folder first"
        )


def reserve(path: Path | str, size: int) -> None:
    """Allocate `size` bytes of disk for a file, where the file system can.

    Raises:
        OSError: The disk is full.
    """
    with open(path, "rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def reading(path: Path | str, remedy: str = COPY) -> Iterator[None]:
    """Turn errors of reading a file in this block into our own.

    Args:
        path: The file.
        remedy: Where it is damaged.

    Raises:
        UnreadableError: It is out of reach now.
        DataError: It is missing or damaged.
    """
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises all three
        raise read_error(error, path, remedy) from error


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn errors of the operating system in writing a file in this block into our own.

    Raises:
        DataError: It cannot be written; also where HDF5 hides the error in its text.
    """
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
    """The error of mpidl for `error`, which was raised while reading `path`.

    Args:
        error: From Python or HDF5.
        path: The file.
        remedy: Where it is damaged.
    """
    code, where = errno_of(error), str(path)
    if code == errno.ENOENT:
        return DataError("the file does not exist", where=where, remedy="check the path")
    if code in WRONG_PATH:
        return DataError(f"cannot be opened: {strerror(code)}", where=where, remedy=os_remedy(code))
    return unreadable(code, where) or DataError(
        f"is damaged: {os_words(error)}", where=where, remedy=remedy
    )
