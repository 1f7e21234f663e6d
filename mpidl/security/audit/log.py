"""Writes the audit log of a job: one writer, one file, its heads signed now and then."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import secrets
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

import msgspec

from mpidl.errors import DataError, SecurityError, notice, os_remedy, strerror
from mpidl.security.audit import chain
from mpidl.security.audit.chain import CLOSED, HEAD_TYPE, HEADS, LOG, Head
from mpidl.security.audit.record import Decision, Record, Value, encode, moment
from mpidl.security.signer import Signer, user

WITNESSED = 64  # logs whose ends a new log records
MOST_CHARACTERS = 4096  # of a text in a record
MOST_STEPS = 64  # of one job at once, each with a log of its own
_KEEP = "keep it as evidence: move it and its heads elsewhere; 'mpidl audit verify' says more"


class AuditLog:
    """The log of a job, open for appending. Any thread may write.

    Args:
        folder: Of all logs.
        heads: Of their signed heads.
        signer: Signs the heads.
        every: Records between heads.
        name: Of the log; None: of the SLURM job, else a new one.

    Raises:
        SecurityError: There is a log of that name, and it is not intact.
        DataError: It cannot be written.
    """

    def __init__(
        self, folder: Path, heads: Path, signer: Signer, every: int, name: str | None = None
    ) -> None:
        self._lock = Lock()
        self._signer = signer
        self._every = every
        self._user = user()
        self._job = os.environ.get("SLURM_JOB_ID", "")
        for place in (folder, heads):
            with _writing(place):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = _witness(folder, heads)
        self.name, self.path, self._file = _open(folder, name or _new_name())
        self._heads_path = heads / (self.name + HEADS)
        torn = self._go_on()
        self.add("log.opened", object=signer.name, details={"known": known})
        if torn:
            notice(f"{self.path}: {torn} bytes of a torn last line were left out", "audit")
            self.add("log.recovered", details={"bytes": torn})

    def _go_on(self) -> int:
        """Continue after the last record that was written whole.

        Returns:
            Bytes of a torn line that were cut off.
        """
        found = chain.scan(self.path)
        heads = chain.read_heads(self._heads_path, self.name, None)
        problems = [one for one in chain.check(found, heads) if not one.unfinished]
        if problems:
            raise SecurityError(f"is not intact: {problems[0]}", where=str(self.path), remedy=_KEEP)
        self._count, self._last = len(found.records), found.last
        self._head, self._last_head = len(heads.every), heads.last
        self._signed = heads.every[-1].count if heads.every else 0
        os.ftruncate(self._file, found.bytes)
        with _writing(self._heads_path):
            self._heads = os.open(self._heads_path, _FLAGS, 0o600)
            os.ftruncate(self._heads, heads.bytes)
        return found.torn

    def add(
        self,
        action: str,
        *,
        object: str = "",
        digest: str = "",
        rank: int = 0,
        decision: Decision = "done",
        related: str = "",
        details: Mapping[str, Value] | None = None,
    ) -> str:
        """Append a record, which outlives this process from now on.

        Args:
            action: KIND.WHAT.
            object: A path or a name.
            digest: SHA-256 of the object, in hexadecimal.
            rank: That acted.
            decision: What became of it.
            related: The event that it belongs to.
            details: More, by name.

        Returns:
            The name of the event.

        Raises:
            DataError: It cannot be written: what must be audited must not go on.
        """
        with self._lock:
            record = Record(
                self.name,
                self._count,
                moment(),
                self._user,
                self._job or self.name,
                rank,
                action,
                _storable(object),
                digest,
                decision,
                related,
                {name: _value(value) for name, value in (details or {}).items()},
                self._last,
            )
            line, self._last = encode(record)
            self._append(self._file, line, self.path)
            self._count += 1
            if self._count - self._signed >= self._every:
                self._sign_head()
        return record.event

    def sign_head(self) -> None:
        """Sign how far the log has come, and force all of it to disk."""
        with self._lock:
            self._sign_head()

    def _sign_head(self) -> None:
        if self._count == self._signed:
            return
        head = Head(self.name, self._head, self._count, self._last, moment(), self._last_head)
        payload = msgspec.json.encode(head)
        with _writing(self.path):
            os.fsync(self._file)  # a head never tells of records that are not there
        envelope = self._signer.sign(payload, HEAD_TYPE)
        self._append(self._heads, envelope.encode() + b"\n", self._heads_path)
        with _writing(self._heads_path):
            os.fsync(self._heads)
        self._last_head = hashlib.sha256(payload).hexdigest()
        self._head, self._signed = self._head + 1, self._count

    def close(self) -> None:
        """End the log, with a signed head over all of it."""
        self.add(CLOSED)
        self.sign_head()
        os.close(self._file)
        os.close(self._heads)

    @staticmethod
    def _append(handle: int, line: bytes, path: Path) -> None:
        with _writing(path):
            if os.write(handle, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class _writing:
    """Turns errors of the operating system in this block into our own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            code = error.errno or 0
            raise DataError(
                f"the audit log cannot be written: {strerror(code)}",
                where=str(self._path),
                remedy=os_remedy(code),
            ) from error


def _open(folder: Path, name: str) -> tuple[str, Path, int]:
    """Open and lock the log `name`, or another one where a step of the same job holds it."""
    for number in range(1, MOST_STEPS + 1):
        own = name if number == 1 else f"{name}-{number}"
        path = folder / (own + LOG)
        with _writing(path):
            handle = os.open(path, _FLAGS, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    os.close(handle)
                    continue
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        return own, path, handle
    raise DataError(
        f"{MOST_STEPS} processes write logs of this name already",
        where=str(folder / (name + LOG)),
        remedy="run fewer steps of one job at once",
    )


def _new_name() -> str:
    job = os.environ.get("SLURM_JOB_ID", "")
    if job.isdigit():
        return f"slurm-{job}"
    host = "".join(c for c in socket.gethostname().partition(".")[0] if c.isalnum() or c == "-")
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return f"{now}-{host[:40] or 'host'}-{os.getpid()}-{secrets.token_hex(2)}"


def _storable(text: str) -> str:
    """Text that JSON can hold: names of files may be no Unicode."""
    return text[:MOST_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def _value(value: Value) -> Value:
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, list):
        return [_storable(text) for text in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _witness(folder: Path, heads: Path) -> list[str]:
    """The newest heads of the other logs, "LOG:COUNT:DIGEST": so none can be lost unseen."""
    with _writing(heads):
        files = sorted(heads.glob(f"*{HEADS}"), key=lambda path: path.stat().st_mtime_ns)
    found = []
    for path in files[-WITNESSED:]:
        name = path.name.removesuffix(HEADS)
        every = chain.read_heads(path, name, None).every
        if every and (folder / (name + LOG)).is_file():
            found.append(f"{name}:{every[-1].count}:{every[-1].last}")
    return found
