"""The one door to h5py: loaded after MPI, asked for parallel access in one place, and files from outside not trusted."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mpidl.comm import mpi
from mpidl.errors import DataError, errno_of, os_remedy, strerror, unreadable
from mpidl.files import COPY, read_error

mpi.preload()  # before h5py, see mpidl.comm.mpi
import h5py  # noqa: E402

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_LOCKING = hasattr(h5py.h5p.PropFAID, "set_file_locking")  # HDF5 1.10.7, or 1.12.1 and later
if not _LOCKING:
    os.environ.setdefault(
        "HDF5_USE_FILE_LOCKING", "FALSE"
    )  # older ones know this only, for all files of the process
REBUILD = (
    "rebuild it: HDF5_MPI=ON CC=mpicc HDF5_DIR=<prefix of a parallel HDF5> "
    "pip install --no-build-isolation --no-binary=h5py --no-deps --force-reinstall h5py"
)


def is_parallel() -> bool:
    """Whether this h5py has the `mpio` driver."""
    return bool(h5py.get_config().mpi)


class _Target(io.RawIOBase):
    """The file that HDF5 writes to, where writing never fails: HDF5 crashes later where it cannot write what it has cached.

    The first error is kept in `error`, and nothing is written after it. The file is locked against other writers where the file
    system has locks.
    """

    def __init__(self, path: Path | str, mode: str) -> None:
        self._file = os.open(path, os.O_RDWR | (os.O_CREAT if mode == "w" else 0), 0o666)
        self._place = 0
        self.error: OSError | None = None
        _lock(self._file)
        if mode == "w":
            os.ftruncate(self._file, 0)

    def _write(self, action: Callable[[], None]) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        self._place = os.lseek(self._file, offset, whence)
        return self._place

    def tell(self) -> int:
        """As of any file."""
        return self._place

    def readinto(self, memory: Any) -> int:
        """As of any file."""
        count = os.preadv(self._file, [memory], self._place)
        self._place += count
        return count

    def write(self, data: Any) -> int:
        """All of `data`; nothing after the first error."""
        rest = memoryview(data).cast("B")
        size = len(rest)

        def action() -> None:
            nonlocal rest
            while rest:
                count = os.pwrite(self._file, rest, self._place)
                rest, self._place = rest[count:], self._place + count

        self._write(action)
        return size

    def truncate(self, size: int | None = None) -> int:
        """As of any file; not after the first error."""
        size = self._place if size is None else size
        self._write(lambda: os.ftruncate(self._file, size))
        return size

    def close(self) -> None:
        """Give the file and its lock back."""
        if not self.closed:
            super().close()
            os.close(self._file)


def _lock(file: int) -> None:
    """Lock an open file against other writers; BlockingIOError where somebody holds it. Not every file system has locks.

    HDF5_USE_FILE_LOCKING=FALSE means here what it means to HDF5.
    """
    if os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("FALSE", "0"):
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise
    except OSError:
        pass


class _Written(h5py.File):  # type: ignore[misc]
    """An h5py File over a `_Target`; raises the OSError of a failed write once it is closed."""

    def __init__(self, path: Path | str, mode: str) -> None:
        self._target = _Target(path, mode)
        try:
            super().__init__(self._target, mode)
        except BaseException:
            self._target.close()
            raise

    def check(self) -> None:
        """Raise the error of a write that failed."""
        if self._target.error is not None:
            raise self._target.error

    def close(self) -> None:
        """Close the file. Raises OSError where something could not be written."""
        if not self.id:
            return
        try:
            super().close()
        finally:
            self._target.close()
        self.check()


def check_written(file: Any) -> None:
    """Raise the OSError of a write to `file` (from `open_file`) that has failed so far; closing the file does so too."""
    if isinstance(file, _Written):
        file.check()


def open_file(
    path: Path | str,
    mode: str = "r",
    *,
    comm: Any = None,
    chunk_cache: bool = True,
    remedy: str = COPY,
) -> Any:
    """An h5py File; with `comm`, opened by all its ranks together through the mpio driver.

    mode: "r", "r+" or "w". chunk_cache=False: large reads of uncompressed chunks go straight into the caller's memory. remedy:
    what to do about a damaged file. Files are renamed into place when they are complete, so that readers take no lock.

    Raises UnreadableError where the file is out of reach now (locked, no permission, an I/O error, too many open files), and
    DataError naming the file where it is not there, damaged or not HDF5, or cannot be written.
    """
    options: dict[str, Any] = {"driver": "mpio", "comm": comm} if comm is not None else {}
    if not chunk_cache:
        options["rdcc_nbytes"] = 0
    if _LOCKING and mode == "r":
        options["locking"] = False
    try:
        if comm is None and mode != "r":
            return _Written(path, mode)
        return h5py.File(path, mode, **options)
    except (OSError, RuntimeError) as error:
        raise _open_error(error, path, mode, remedy) from error


def _open_error(error: Exception, path: Path | str, mode: str, remedy: str) -> DataError:
    """Why HDF5 could not open a file. Through mpio it does not say, so that we look for ourselves."""
    code, signed = errno_of(error), True
    if not code and mode != "w":
        code, signed = _look(Path(path), os.O_RDONLY if mode == "r" else os.O_RDWR)
    if mode == "r" and code:
        return read_error(OSError(code, strerror(code)), path, remedy)
    if code:
        known = unreadable(code, str(path)) if mode == "r+" else None
        return known or DataError(
            f"cannot be written: {strerror(code)}", where=str(path), remedy=os_remedy(code)
        )
    if not signed:
        return DataError(
            "is not an HDF5 file: the signature is missing",
            where=str(path),
            remedy=f"check the path; or {remedy}",
        )
    sizes = re.search(r"truncated file: eof = (\d+), .*stored_eof = (\d+)", str(error))
    if sizes:
        what = f"is truncated: it has {int(sizes[1]):,} bytes, and {int(sizes[2]):,} were written"
        return DataError(what, where=str(path), remedy=remedy)
    return read_error(error, path, remedy)


def _look(path: Path, flags: int) -> tuple[int, bool]:
    """The error number of opening and reading the file (0: none), and whether it has the signature of HDF5.

    The signature stands at byte 0, 512, 1024, 2048, ... (HDF5 File Format Specification, section II.A).
    """
    try:
        handle = os.open(path, flags)
        try:
            size, place = os.fstat(handle).st_size, 0
            while place < max(size, 1):
                if os.pread(handle, len(SIGNATURE), place) == SIGNATURE:
                    return 0, True
                place = max(512, 2 * place)
        finally:
            os.close(handle)
    except OSError as error:
        return error.errno or errno.EIO, False
    return 0, False


def early_allocation() -> Any:
    """Creation properties that reserve all chunks at once, which independent parallel writes need."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return properties


def trusted_dataset(file: Any, name: str, path: Path | str) -> Any:
    """The dataset `name`, refused if it would read other files or claims more data than the file holds.

    External storage, external links and virtual datasets can read any file of the user (compare CVE-2026-1669).
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise DataError(
            f"has no dataset {name!r}, only {sorted(file)}", where=str(path), remedy=COPY
        )
    if not isinstance(link, h5py.HardLink):
        raise DataError(
            f"{name!r} is a link to elsewhere, which is not allowed",
            where=str(path),
            remedy="copy the data in",
        )
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(
            f"{name!r} is not a dataset",
            where=str(path),
            remedy="put the datasets at the top of the file",
        )
    if dataset.is_virtual or dataset.external:
        raise DataError(
            f"{name!r} keeps its data in other files, which is not allowed",
            where=str(path),
            remedy="copy the data in",
        )
    size = Path(path).stat().st_size
    if dataset.compression is None and dataset.nbytes > size:
        raise DataError(
            f"{name!r} claims {dataset.nbytes} bytes, but the whole file has {size}: it is truncated or forged",
            where=str(path),
            remedy=COPY,
        )
    return dataset


def read_ranges(dataset: Any, ranges: Sequence[tuple[int, int]], out: NDArray[Any]) -> None:
    """Read the row ranges of a dataset one after another into `out`, by one H5Dread each.

    One read for the union of many ranges would be slower: HDF5 walks the elements of a selection that is not a single block.
    """
    here, rest = dataset.id.get_space(), dataset.shape[1:]
    origin, row = (0,) * len(rest), 0
    for start, stop in ranges:
        if stop == start:
            continue
        extent = (stop - start, *rest)
        here.select_hyperslab((start, *origin), extent)
        dataset.id.read(h5py.h5s.create_simple(extent), here, out[row : row + stop - start])
        row += stop - start


def read_ranges_collectively(
    dataset: Any, ranges: Sequence[tuple[int, int]], out: NDArray[Any]
) -> None:
    """As read_ranges, by exactly one collective H5Dread, in which a rank without any range takes part too.

    ranges: ascending, not overlapping. The ranks may bring different numbers of ranges.
    """
    here, rest = dataset.id.get_space(), dataset.shape[1:]
    here.select_none()
    for start, stop in ranges:
        here.select_hyperslab(
            (start, *(0,) * len(rest)), (stop - start, *rest), op=h5py.h5s.SELECT_OR
        )
    transfer = h5py.h5p.create(h5py.h5p.DATASET_XFER)
    transfer.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
    there = h5py.h5s.create_simple(out.shape) if out.size else here
    dataset.id.read(there, here, out, dxpl=transfer)
