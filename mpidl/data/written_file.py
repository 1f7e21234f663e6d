"""The file that HDF5 writes to, plain or sealed."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mpidl.security.sealing_keys import Envelope


class _Target(Protocol):
    """What is written to, at offsets."""

    file: int

    def start(self) -> None: ...
    def read_into(self, memory: Any, offset: int) -> int: ...
    def write(self, data: Any, offset: int) -> None: ...
    def truncate(self, size: int) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...

    @property
    def size(self) -> int: ...


class _PlainFile:
    """A file as it is."""

    def __init__(self, path: Path | str, mode: str) -> None:
        self.file = os.open(path, os.O_RDWR | (os.O_CREAT if mode == "w" else 0), 0o666)

    @property
    def size(self) -> int:
        return os.fstat(self.file).st_size

    def start(self) -> None:
        os.ftruncate(self.file, 0)

    def read_into(self, memory: Any, offset: int) -> int:
        return os.preadv(self.file, [memory], offset)

    def write(self, data: Any, offset: int) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            count = os.pwrite(self.file, rest, offset)
            rest, offset = rest[count:], offset + count

    def truncate(self, size: int) -> None:
        os.ftruncate(self.file, size)

    def finish(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
        self.file = -1


class WrittenFile(io.RawIOBase):
    """The file that HDF5 writes to; writing never fails.

    HDF5 crashes where it cannot flush its cache.
    The first error is kept in `error`, and nothing is written after it. The file is locked against
    other writers where the file system has locks.

    Args:
        path: The file.
        mode: "r+" or "w".
        seal: For whom it is sealed, with mode "w"; None: it is not.
    """

    def __init__(self, path: Path | str, mode: str, seal: Envelope | None = None) -> None:
        self._target = _open(path, mode, seal)
        self._position = 0
        self.error: OSError | None = None
        _lock(self._target)
        if mode == "w":
            self._target.start()

    def _write(self, action: Callable[[], None]) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        self._position = offset + (0, self._position, self._target.size)[whence]
        return self._position

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._position

    def readinto(self, memory: Any) -> int:
        """See `io.RawIOBase`."""
        count = self._target.read_into(memory, self._position)
        self._position += count
        return count

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing after the first error."""
        size, offset = memoryview(data).nbytes, self._position
        self._write(lambda: self._target.write(data, offset))
        self._position += size
        return size

    def truncate(self, size: int | None = None) -> int:
        """See `io.RawIOBase`; does nothing after the first error."""
        wanted = self._position if size is None else size
        self._write(lambda: self._target.truncate(wanted))
        return wanted

    def finish(self) -> None:
        """Complete the file, once HDF5 has closed it; not after an error."""
        self._write(self._target.finish)

    def close(self) -> None:
        """Close the file, which releases its lock."""
        if not self.closed:
            super().close()
            self._target.close()


def _open(path: Path | str, mode: str, seal: Envelope | None) -> _Target:
    if seal is None:
        return _PlainFile(path, mode)
    if mode != "w":
        raise ValueError("a sealed file is written at once")
    from mpidl.security.sealed_writer import SealedWriter

    return SealedWriter(path, seal)


def _lock(target: _Target) -> None:
    """Lock an open file against other writers, where the file system has locks.

    HDF5_USE_FILE_LOCKING=FALSE means here what it means to HDF5.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    if os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("FALSE", "0"):
        return
    try:
        fcntl.flock(target.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        target.close()
        raise
    except OSError:
        pass
