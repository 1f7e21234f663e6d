"""One family of exceptions: every message says what is wrong, where, and what to do about it."""

from __future__ import annotations


class MpidlError(Exception):
    """Base of all errors that mpidl raises on purpose.

    what: the problem in one sentence; where: rank, file, layer or tensor; remedy: what the user can do.
    `agreed` is True once every rank knows of the error, so that rank 0 alone needs to print it.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.remedy = what, where, remedy
        self.agreed = False

    def __str__(self) -> str:
        """One line for the head (what, where) and one for the remedy."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  what to do: {self.remedy}" if self.remedy else head


class ConfigError(MpidlError):
    """The configuration file or a command-line override is wrong."""


class DataError(MpidlError):
    """A data set, shard or sample cannot be used."""


class CheckpointError(MpidlError):
    """A checkpoint cannot be written, found or trusted."""


class NumericsError(MpidlError):
    """A loss, gradient or parameter is not finite."""


class CollectiveError(MpidlError):
    """A collective operation was called with arguments that cannot work."""


class BackendError(MpidlError):
    """The compute backend cannot do what was asked of it."""


class ShapeError(MpidlError):
    """Shapes that must fit do not; names the layer and both shapes."""


class EnvironmentProblem(MpidlError):
    """MPI, HDF5, or another part of the machine is missing or unusable."""


def wrap(error: Exception, doing: str) -> MpidlError:
    """An MpidlError for `error`: itself if it is one, else one that names the activity and the original type."""
    if isinstance(error, MpidlError):
        return error
    if isinstance(error, MemoryError):
        return MpidlError(
            f"out of memory while {doing}",
            remedy="lower train.global_batch or data.window_bytes, raise train.micro_batches, or use more nodes",
        )
    if isinstance(error, OSError):
        return MpidlError(f"{error} (while {doing})", remedy=_os_remedy(error))
    return MpidlError(f"{type(error).__name__}: {error} (while {doing})")


def _os_remedy(error: OSError) -> str:
    import errno

    remedies = {
        errno.ENOSPC: "free space on that file system or choose another place (train.output)",
        errno.EDQUOT: "your quota is used up: delete files or choose another place (train.output)",
        errno.EFBIG: "the file-size limit of this session is reached (ulimit -f)",
        errno.EACCES: "check the permissions of that path",
        errno.EPERM: "check the permissions of that path",
        errno.EROFS: "that file system is read-only: choose another place",
        errno.ENOENT: "check the path",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
    }
    return remedies.get(error.errno or 0, "check the path and the file system")
