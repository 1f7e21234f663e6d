"""The only module that imports h5py: after MPI, and without trust in files from outside."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from mpidl.comm import mpi
from mpidl.comm.protected import is_protected, plain
from mpidl.data.written_file import WrittenFile
from mpidl.errors import DataError, errno_of, os_remedy, strerror, unreadable
from mpidl.files import COPY, read_error
from mpidl.security.sealed_file import SealedFile, check_required, is_sealed

mpi.preload()  # before h5py, see mpidl.comm.mpi
import h5py as h5py  # noqa: E402

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpidl.security.sealing_keys import Envelope

SIGNATURE = b"\x89HDF\r\n\x1a\n"
LOCKING = hasattr(h5py.h5p.PropFAID, "set_file_locking")  # HDF5 1.10.7, or 1.12.1 and later
if not LOCKING:
    # Older ones have this variable only, for all files of the process
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
_COPY_IN = "copy the data into the file"
REBUILD = (
    "rebuild it: HDF5_MPI=ON CC=mpicc HDF5_DIR=<prefix of a parallel HDF5> "
    "pip install --no-build-isolation --no-binary=h5py --no-deps --force-reinstall h5py"
)


def is_parallel(comm: Any = None) -> bool:
    """Whether this h5py has the `mpio` driver, which encrypts nothing that the ranks exchange."""
    return bool(h5py.get_config().mpi) and not is_protected(comm)


class _WritableFile(h5py.File):  # type: ignore[misc]
    """An h5py File over `WrittenFile`; raises the OSError of a failed write when closed."""

    def __init__(self, path: Path | str, mode: str, seal: Envelope | None) -> None:
        self._target = WrittenFile(path, mode, seal)
        try:
            super().__init__(self._target, mode)
        except BaseException:
            self._target.close()
            raise

    def check(self) -> None:
        """Raise the OSError of a write that failed."""
        if self._target.error is not None:
            raise self._target.error

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: Something could not be written.
        """
        if not self.id:
            return
        try:
            super().close()
            self._target.finish()
        finally:
            self._target.close()
        self.check()


class _SealedFile(h5py.File):  # type: ignore[misc]
    """An h5py File over a sealed one, which is closed with it.

    Attributes:
        sealed: It.
    """

    def __init__(self, path: Path | str, **options: Any) -> None:
        self.sealed = SealedFile(path)
        try:
            super().__init__(self.sealed, "r", **options)
        except BaseException:
            self.sealed.close()
            raise

    def close(self) -> None:
        """Close the file."""
        super().close()
        self.sealed.close()


def check_written(file: Any) -> None:
    """Raise the error of a write that has failed so far; closing the file does so too.

    Args:
        file: From `open_file`.

    Raises:
        OSError: A write failed.
    """
    if isinstance(file, _WritableFile):
        file.check()


def sealed_of(file: Any) -> SealedFile | None:
    """The sealed file below one from `open_file`; None: it is not sealed."""
    return file.sealed if isinstance(file, _SealedFile) else None


def open_file(
    path: Path | str,
    mode: str = "r",
    *,
    comm: MPI.Intracomm | None = None,
    chunk_cache: bool = True,
    remedy: str = COPY,
    seal: Envelope | None = None,
) -> Any:
    """Open an HDF5 file, sealed or not. Collective with `comm`.

    Readers take no lock: files are renamed into place when they are complete.

    Args:
        path: The file.
        mode: "r", "r+" or "w".
        comm: Its ranks open the file together through the mpio driver; None: this process alone.
        chunk_cache: False: large reads of uncompressed chunks bypass the cache.
        remedy: Where the file is damaged.
        seal: For whom to seal what is written, with mode "w".

    Returns:
        An h5py File.

    Raises:
        UnreadableError: The file is out of reach now: locked, no permission, an I/O error, too many
            open files.
        DataError: It is missing, damaged or not HDF5, or cannot be written.
    """
    options: dict[str, Any] = {}
    if comm is not None:
        ranks = plain(comm, "the mpio driver", "set data.driver = posix")
        options = {"driver": "mpio", "comm": ranks}
    if not chunk_cache:
        options["rdcc_nbytes"] = 0
    if mode == "r":
        check_required(path)
        options |= {"locking": False} if LOCKING else {}
    try:
        if comm is None and mode != "r":
            return _WritableFile(path, mode, seal)
        return h5py.File(path, mode, **options)
    except (OSError, RuntimeError) as error:
        if mode == "r" and is_sealed(path):
            return _open_sealed(path, comm, options, remedy)
        raise _open_error(error, path, mode, remedy) from error


def _open_sealed(path: Path | str, comm: Any, options: dict[str, Any], remedy: str) -> Any:
    if comm is not None:
        raise DataError(
            "is sealed, and several ranks would open it together",
            where=str(path),
            remedy="set data.driver = 'posix'",
        )
    options.pop("locking", None)
    try:
        return _SealedFile(path, **options)
    except (OSError, RuntimeError) as error:
        raise read_error(error, path, remedy) from error


def _open_error(error: Exception, path: Path | str, mode: str, remedy: str) -> DataError:
    """Why HDF5 could not open a file.

    The mpio driver does not say, so the file is opened once more without HDF5.
    """
    code, signed = errno_of(error), True
    if not code and mode != "w":
        code, signed = _inspect(Path(path), os.O_RDONLY if mode == "r" else os.O_RDWR)
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


def _inspect(path: Path, flags: int) -> tuple[int, bool]:
    """The error number of opening and reading a file, 0 for none; and whether it is HDF5.

    The signature is at byte 0, 512, 1024, 2048, ... (HDF5 File Format Specification, section II.A).
    """
    try:
        handle = os.open(path, flags)
        try:
            size = os.fstat(handle).st_size
            offset = 0
            while offset < max(size, 1):
                if os.pread(handle, len(SIGNATURE), offset) == SIGNATURE:
                    return 0, True
                offset = max(512, 2 * offset)
        finally:
            os.close(handle)
    except OSError as error:
        return error.errno or errno.EIO, False
    return 0, False


def early_allocation() -> Any:
    """Creation properties that allocate all chunks at once, as independent parallel writes need."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return properties


def trusted_dataset(file: Any, name: str, path: Path | str) -> Any:
    """A dataset that reads no other file and holds no more data than its file.

    External storage, external links and virtual datasets can read any file of the user (compare
    CVE-2026-1669).

    Args:
        file: From `open_file`.
        name: Of the dataset, or its path through groups.
        path: Of the file.

    Raises:
        DataError: There is no such dataset, or it cannot be trusted.
    """
    dataset = _follow(file, name, path)
    if not isinstance(dataset, h5py.Dataset):
        remedy = "name a dataset, or put it at the top of the file"
        raise _refused(path, f"{name!r} is not a dataset", remedy)
    if kind_of(dataset.id) == "other":
        raise _refused(path, f"{name!r} does not hold numbers", "store numbers")
    if dataset.is_virtual or dataset.external:
        what = f"{name!r} keeps its data in other files, which is not allowed"
        raise _refused(path, what, _COPY_IN)
    size = Path(path).stat().st_size
    if not is_compressed(dataset) and dataset.nbytes > size:
        what = (
            f"{name!r} claims {dataset.nbytes} bytes, but the whole file has {size}: "
            "it is truncated or forged"
        )
        raise _refused(path, what, COPY)
    return dataset


def filters(dataset: Any) -> dict[int, str]:
    """The filters of a dataset, such as compression: number -> name."""
    properties = dataset.id.get_create_plist()
    found = (properties.get_filter(index) for index in range(properties.get_nfilters()))
    return {code: name.decode(errors="replace") for code, _, _, name in found}


def kind_of(item: Any) -> str:
    """Whether a dataset or attribute holds "numbers", "texts" (or opaque bytes), or "other".

    To be asked before its dtype: h5py writes beyond its memory in reading forged enumerations of
    wide numbers (and booleans are enumerations).

    Args:
        item: A low-level h5py object.
    """
    kind = item.get_type()
    code = kind.get_class()
    if code in (h5py.h5t.OPAQUE, h5py.h5t.STRING):
        return "texts"
    if code == h5py.h5t.ENUM and max(kind.get_size(), kind.get_super().get_size()) <= 8:
        return "numbers"
    return "numbers" if code in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) else "other"


def stored_dtype(dataset: Any) -> str:
    """The dtype that a dataset is read as: native byte order, booleans as bytes."""
    return "uint8" if dataset.dtype.kind == "b" else str(dataset.dtype.name)


def is_compressed(dataset: Any) -> bool:
    """Whether a dataset may need less space in its file than in memory."""
    return bool(set(filters(dataset)) - {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32})


def _follow(file: Any, name: str, path: Path | str) -> Any:
    """What lies at `name`, every step of which is a hard link: others lead out of the file."""
    place = file
    for step in name.strip("/").split("/"):
        link = place.get(step, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            held = sorted(place) if isinstance(place, h5py.Group) else []
            raise _refused(path, f"has no dataset {name!r}, only {held}", COPY)
        if not isinstance(link, h5py.HardLink):
            raise _refused(path, f"{name!r} is a link to elsewhere, which is not allowed", _COPY_IN)
        place = place[step]
    return place


def _refused(path: Path | str, what: str, remedy: str) -> DataError:
    return DataError(what, where=str(path), remedy=remedy)


def read_ranges(dataset: Any, ranges: Sequence[tuple[int, int]], out: NDArray[Any]) -> None:
    """Read row ranges of a dataset by one H5Dread each.

    One read for the union of many ranges would be slower: HDF5 walks the elements of a selection
    that is not a single block.

    Args:
        dataset: An h5py dataset.
        ranges: (start, stop) of each.
        out: Takes the rows one after another.
    """
    here, rest = dataset.id.get_space(), dataset.shape[1:]
    origin = (0,) * len(rest)
    row = 0
    for start, stop in ranges:
        if stop == start:
            continue
        size = (stop - start, *rest)
        here.select_hyperslab((start, *origin), size)
        dataset.id.read(h5py.h5s.create_simple(size), here, out[row : row + stop - start])
        row += stop - start


def read_ranges_collectively(
    dataset: Any, ranges: Sequence[tuple[int, int]], out: NDArray[Any]
) -> None:
    """As `read_ranges`, by exactly one collective H5Dread.

    Args:
        dataset: An h5py dataset of a file that all ranks have opened together.
        ranges: Ascending, not overlapping; ranks may have different numbers of them, or none.
        out: Takes the rows one after another.
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
