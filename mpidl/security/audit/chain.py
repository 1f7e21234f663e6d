"""Reads logs and their signed heads; finds where they were changed, cut or mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from mpidl.errors import MpidlError
from mpidl.files import reading
from mpidl.security.audit.record import (
    LARGEST,
    Digest,
    LogName,
    Moment,
    Record,
    beginning,
    decode,
)
from mpidl.security.envelope import Envelope
from mpidl.security.trusted import Trusted

LOG, HEADS = ".jsonl", ".heads.jsonl"
HEAD_TYPE = "application/vnd.mpidl.audit-head+json"
NO_HEAD = "0" * 64  # stands in place of the digest of a head before the first one
CLOSED = "log.closed"


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a log had come, signed.

    Attributes:
        log: Its name.
        counter: Of the heads of this log, from 0: each is one more than the one before.
        count: Records in it.
        last: SHA-256 of the last of them.
        time: When it was signed.
        previous: SHA-256 of the head before, as it was signed.
    """

    log: LogName
    counter: Annotated[int, Meta(ge=0, le=1 << 62)]
    count: Annotated[int, Meta(ge=0, le=1 << 62)]
    last: Digest
    time: Moment
    previous: Digest


@dataclass(frozen=True)
class Finding:
    """Something wrong with a log.

    Attributes:
        log: Its name.
        line: Where, from 1; 0: the log as a whole.
        what: In words.
        unfinished: As a job that was killed, or still runs, leaves it too.
    """

    log: str
    line: int
    what: str
    unfinished: bool = False

    def __str__(self) -> str:
        place = f", line {self.line}" if self.line else ""
        return f"{self.log}{place}: {self.what}"


@dataclass
class Scan:
    """A log as it was read.

    Attributes:
        name: Of the log.
        records: Up to the first one that is wrong.
        digests: Of the records.
        bytes: Size of these records in the file.
        torn: Bytes of a last line without its end.
        findings: What is wrong.
    """

    name: str
    records: list[Record] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    bytes: int = 0
    torn: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def last(self) -> str:
        """The digest that the next record is chained to."""
        return self.digests[-1] if self.digests else beginning(self.name)


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, none longer than can be right."""
    with reading(path), open(path, "rb") as file:
        while line := file.readline(LARGEST + 2):
            yield line


def scan(path: Path) -> Scan:
    """Read a log up to its end, or to the first line that does not continue the chain.

    Raises:
        DataError: It cannot be read.
    """
    found = Scan(path.name.removesuffix(LOG))
    for number, line in enumerate(lines(path)):
        if not line.endswith(b"\n"):
            found.torn = len(line)
            break
        try:
            record, digest = decode(line[:-1])
        except ValueError as error:
            found.findings.append(Finding(found.name, number + 1, f"the line {error}"))
            break
        if wrong := _misplaced(record, found, number):
            found.findings.append(Finding(found.name, number + 1, wrong))
            break
        found.records.append(record)
        found.digests.append(digest)
        found.bytes += len(line)
    return found


def _misplaced(record: Record, before: Scan, number: int) -> str:
    """Why a record, intact in itself, cannot stand here; empty if it can."""
    if record.log != before.name:
        return f"a line of another log, {record.log}, was put here"
    if record.number > number:
        return f"record {record.number} stands in place of {number}: lines before it were removed"
    if record.number < number:
        return f"record {record.number} comes again, or out of order"
    if record.previous != before.last:
        return "it does not follow from the line before, which was replaced"
    return ""


@dataclass
class Heads:
    """The signed heads of a log.

    Attributes:
        every: Up to the first one that is wrong.
        last: Digest of the last, as `Head.previous` of the next.
        bytes: Size of these heads in the file.
        findings: What is wrong.
        signatories: Who has signed.
    """

    every: list[Head] = field(default_factory=list)
    last: str = NO_HEAD
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    signatories: dict[str, None] = field(default_factory=dict)


def read_heads(path: Path, name: str, trusted: Trusted | None) -> Heads:
    """The heads of a log.

    Args:
        path: Their file; it need not exist.
        name: Of the log.
        trusted: Whom they are accepted from; None: signatures are not verified, by the writer who
            only goes on from where the file ends.
    """
    found = Heads()
    if not path.is_file():
        return found
    for number, line in enumerate(lines(path)):
        where = f"{path.name}, line {number + 1}"

        def wrong(what: str, unfinished: bool = False, line: int = number + 1) -> None:
            found.findings.append(Finding(name, 0, f"head {line} {what}", unfinished))

        if not line.endswith(b"\n"):
            wrong("is torn", unfinished=True)
            break
        try:
            envelope = Envelope.decode(line[:-1], where)
            if envelope.encode() != line[:-1]:
                raise ValueError("not as it was written")
            head = msgspec.json.decode(envelope.payload, type=Head)
            if trusted is not None:
                at = datetime.fromisoformat(head.time)
                found.signatories[trusted.verify(envelope, HEAD_TYPE, where, at=at).name] = None
        except MpidlError as error:
            wrong(f"is not to be trusted: {error.what}")
            break
        except (ValueError, RecursionError):
            wrong("is malformed")
            break
        if (head.log, head.counter, head.previous) != (name, number, found.last):
            wrong("does not follow from the one before: heads were removed, or are of another log")
            break
        found.every.append(head)
        found.last = hashlib.sha256(envelope.payload).hexdigest()
        found.bytes += len(line)
    return found


def check(found: Scan, heads: Heads) -> list[Finding]:
    """Compare a log with its heads.

    Returns:
        What is wrong, the log's own findings and the heads' among them.
    """
    name, problems = found.name, [*found.findings, *heads.findings]
    for head in heads.every:
        if head.count > len(found.records):
            if not found.findings:
                lost = head.count - len(found.records)
                what = (
                    f"{lost} record(s) are missing after this line: the log was cut, or rolled back"
                )
                problems.append(Finding(name, len(found.records), what))
            break
        if head.count and found.digests[head.count - 1] != head.last:
            what = f"is not what was signed in head {head.counter + 1}: the log was written anew"
            problems.append(Finding(name, head.count, what))
            break
    signed = heads.every[-1].count if heads.every else 0
    if not heads.every and not heads.findings:
        problems.append(Finding(name, 0, "has no signed head", unfinished=True))
    if found.torn:
        what = f"the last line is torn, {found.torn} bytes of it are left out"
        problems.append(Finding(name, len(found.records) + 1, what, unfinished=True))
    tail = len(found.records) - signed
    if tail > 0:
        what = f"{tail} record(s) from here on are not signed"
        problems.append(Finding(name, signed + 1, what, unfinished=True))
    elif found.records and found.records[-1].action != CLOSED and not problems:
        what = "has no end: the job was killed or still runs, or an old log was restored"
        problems.append(Finding(name, len(found.records), what, unfinished=True))
    return problems
