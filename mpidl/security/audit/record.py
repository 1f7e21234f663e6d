"""One line of an audit log: what happened, chained to the line before by its SHA-256."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

LARGEST = 1 << 20  # bytes of a line
_SEAL = b',"sha256":"'  # what follows a record in its line, and 64 digits and '"}'
_SEALED = re.compile(rb'(\{.*),"sha256":"([0-9a-f]{64})"\}', re.DOTALL)
Decision = Literal["allowed", "denied", "done", "failed"]
Value = str | int | float | bool | list[str]
LogName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}$")]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Moment = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event.

    Attributes:
        log: The log that it belongs to.
        number: Of the event in its log, from 0; `event` is its name everywhere.
        time: UTC, to the microsecond.
        user: Of the operating system.
        job: The number of the SLURM job, or the name of the log.
        rank: That acted.
        action: KIND.WHAT, such as "checkpoint.saved".
        object: A path or a name; empty: none.
        digest: SHA-256 of the object in hexadecimal; empty: it has none.
        decision: What became of it.
        related: The event that it belongs to, "LOG#NUMBER"; empty: none.
        details: More, by name.
        previous: SHA-256 of the record before, as it stands in its line; of the name of the log at
            its beginning.
    """

    log: LogName
    number: Annotated[int, Meta(ge=0, le=1 << 62)]
    time: Moment
    user: Annotated[str, Meta(max_length=256)]
    job: Annotated[str, Meta(max_length=256)]
    rank: Annotated[int, Meta(ge=0, le=1 << 31)]
    action: Annotated[str, Meta(pattern=r"^[a-z]+\.[a-z]+$", max_length=64)]
    object: Annotated[str, Meta(max_length=8192)]
    digest: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
    decision: Decision
    related: Annotated[str, Meta(max_length=160)]
    details: dict[str, Value]
    previous: Digest

    @property
    def event(self) -> str:
        """Its name over all logs."""
        return f"{self.log}#{self.number}"


def encode(record: Record) -> tuple[bytes, str]:
    """A record as a line, with its end, and its SHA-256."""
    body = msgspec.json.encode(record)
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + _SEAL + digest.encode() + b'"}\n', digest


def decode(line: bytes) -> tuple[Record, str]:
    """The record in a line without its end, and its SHA-256.

    Raises:
        ValueError: It is no such line, or not the one that was written.
    """
    found = _SEALED.fullmatch(line) if len(line) <= LARGEST else None
    if found is None:
        raise ValueError("is no record")
    body, digest = found[1] + b"}", found[2].decode()
    if hashlib.sha256(body).hexdigest() != digest:
        raise ValueError("was altered")
    try:
        record = msgspec.json.decode(body, type=Record)
    except (ValueError, RecursionError) as error:
        raise ValueError("is no record") from error
    return record, digest


def beginning(log: str) -> str:
    """What stands in place of the digest of a record before the first one."""
    return hashlib.sha256(b"mpidl audit log " + log.encode()).hexdigest()


def moment(at: datetime | None = None) -> str:
    """A time as records have it; None: now."""
    at = (at or datetime.now(UTC)).astimezone(UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
