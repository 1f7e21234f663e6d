"""One family of exceptions: every message says what is wrong, where, and what to do about it.

Also the one way to tell the user what is no error (`notice`).
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable
from typing import Self

STOPPED = 75  # exit status of a job that a signal has stopped, after saving


class MpidlError(Exception):
    """Base of all errors that mpidl raises on purpose.

    Args:
        what: The problem in one sentence.
        where: Rank, file, layer or tensor.
        remedy: What the user can do.
        agreed: Every rank raises this error, so that rank 0 alone needs to print it.
    """

    def __init__(
        self, what: str, *, where: str = "", remedy: str = "", agreed: bool = False
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy
        self.agreed = agreed

    def replace(
        self, *, what: str = "", where: str = "", remedy: str = "", agreed: bool | None = None
    ) -> Self:
        """A copy with some fields replaced; it can be pickled even if the original cannot."""
        return type(self)(
            what or self.what,
            where=where or self.where,
            remedy=remedy or self.remedy,
            agreed=self.agreed if agreed is None else agreed,
        )

    def __str__(self) -> str:
        """One line for the head (what, where) and one for the remedy."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  what to do: {self.remedy}" if self.remedy else head


class ConfigError(MpidlError):
    """The configuration file or a command-line override is wrong."""


class DataError(MpidlError):
    """A data set, shard or sample cannot be used."""


class UnreadableError(DataError):
    """A file cannot be read now: locked, no permission, an I/O error. It may be intact."""


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


class SecurityError(MpidlError):
    """Somebody or something is not trusted: a signature, a certificate, a log, a right."""


class PlatformError(MpidlError):
    """MPI, HDF5, or another part of the machine is missing or unusable."""


# Of the Linux kernel, without a name in POSIX: the answer of NFS without locks.
ENOTSUPP = 524
_LOCKS = (
    "close the program that holds a lock on it; where the file system has no working locks, set "
    "HDF5_USE_FILE_LOCKING=FALSE in the environment of the job, or ask for a mount with locks "
    "(Lustre: -o flock)"
)
_PERMISSION = (
    "check the permissions of that path and of its folders; "
    "on AFS or a Kerberos mount renew your ticket"
)
_SERVER = (
    "the file system or its server has a problem: look at its state "
    "(dmesg, the site's status page), then start again"
)
_NETWORK = "the connection to the file server is broken: wait until it is back, then start again"
# Errors that say nothing about the content of a file: it may be intact.
_UNREACHABLE = {
    errno.EAGAIN: _LOCKS,
    errno.ENOLCK: _LOCKS,
    errno.EDEADLK: _LOCKS,
    errno.EOPNOTSUPP: _LOCKS,
    ENOTSUPP: _LOCKS,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENOKEY: _PERMISSION,
    errno.EKEYEXPIRED: _PERMISSION,
    errno.EIO: _SERVER,
    errno.EREMOTEIO: _SERVER,
    errno.ENXIO: _SERVER,
    errno.ENODEV: _SERVER,
    errno.ESTALE: "the file was replaced, or its server restarted, while it was open: start again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files: close programs, "
    "or ask for a higher fs.file-max",
    errno.ENOMEM: "this machine is out of memory: use fewer ranks a node",
    errno.EBUSY: "another program uses it: start again when it is free",
    errno.EINTR: "start again",
    errno.ETIMEDOUT: _NETWORK,
    errno.ENOTCONN: _NETWORK,
    errno.ESHUTDOWN: _NETWORK,
    errno.ECONNREFUSED: _NETWORK,
    errno.ECONNRESET: _NETWORK,
    errno.EHOSTDOWN: _NETWORK,
    errno.EHOSTUNREACH: _NETWORK,
    errno.ENETUNREACH: _NETWORK,
}
_REMEDIES = _UNREACHABLE | {
    errno.ENOSPC: "free space on that file system, or choose another place",
    errno.EDQUOT: "your quota is used up: delete files, or choose another place",
    errno.EFBIG: "the file-size limit of this session is reached (ulimit -f)",
    errno.EROFS: "that file system is read-only: choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of that path is a file, not a folder: check the path",
    errno.EISDIR: "that path is a folder: name a file",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "its links lead in a circle: check the path",
}


def notice(text: str, kind: str = "note") -> None:
    """Print a message for people on stderr; stdout is for results.

    Args:
        text: The message.
        kind: "note", "error" or "error on rank 3".
    """
    print(f"mpidl: {kind}: {text}", file=sys.stderr, flush=True)


def wrap(error: Exception, activity: str) -> MpidlError:
    """An MpidlError for any exception.

    Args:
        error: Returned as it is if it is an MpidlError.
        activity: What was going on ("reading shards"), for the message.
    """
    if isinstance(error, MpidlError):
        return error
    if isinstance(error, MemoryError):
        return MpidlError(
            f"out of memory while {activity}",
            remedy="lower train.global_batch or data.window_bytes, raise train.micro_batches, "
            "or use more nodes",
        )
    code = errno_of(error)
    if isinstance(error, OSError) or code:
        return MpidlError(f"{os_words(error)} (while {activity})", remedy=os_remedy(code))
    return MpidlError(f"{type(error).__name__}: {error} (while {activity})")


def errno_of(error: Exception) -> int:
    """The error number of the operating system, 0 for none.

    HDF5 has it in its text only, and may not raise an OSError.
    """
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"errno = (\d+)|\(os error (\d+)\)", str(error))
    return int(found[1] or found[2]) if found else 0


def os_words(error: Exception) -> str:
    """The text of an error in one line, without the memory addresses that HDF5 appends."""
    code, text = errno_of(error), str(error)
    if "errno = " not in text:
        return text
    return f"{strerror(code)} ({re.sub(r'^.Errno [0-9]+. ', '', text).partition(' (')[0]})"


def strerror(code: int) -> str:
    """What an error number means, in words."""
    return "file locks are not supported" if code == ENOTSUPP else os.strerror(code)


def os_remedy(code: int) -> str:
    """What to do about an error number of the operating system."""
    return _REMEDIES.get(code, "check the path and the file system")


def unreadable(code: int, where: str) -> UnreadableError | None:
    """The error for a file that cannot be read now; None if `code` is no such error.

    Args:
        code: Error number of the operating system.
        where: The file.
    """
    if code not in _UNREACHABLE:
        return None
    locked = " (a lock)" if _UNREACHABLE[code] is _LOCKS else ""
    return UnreadableError(
        f"cannot be read now: {strerror(code)}{locked}; nothing says that the file is damaged",
        where=where,
        remedy=_UNREACHABLE[code],
    )


def at_place(error: Exception) -> tuple[str, ...]:
    """Message and path of a msgspec error: ("expected ...", "fields.x.shape")."""
    what, _, path = str(error).partition(" - at ")
    what = what[:1].lower() + what[1:].replace("`", "")
    place = re.sub(r"^\$\.?", "", path.strip("`")).replace("[...]", ".*")
    return (what, place) if place else (what,)


def nearest(word: str, known: Iterable[str]) -> str:
    """The remedy for a misspelt word: the nearest known word, and all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, 1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"choose one of {', '.join(names)}"
