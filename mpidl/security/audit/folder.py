"""All logs of a folder together: verified against each other, merged, traced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mpidl.errors import DataError
from mpidl.files import reading
from mpidl.security.audit import chain
from mpidl.security.audit.chain import HEADS, LOG, Finding, Scan
from mpidl.security.audit.record import Record
from mpidl.security.trusted import Trusted

MOST_LOGS = 100_000


@dataclass
class Logs:
    """The logs of a folder.

    Attributes:
        scans: By name.
        findings: What is wrong.
        signatories: Who has signed their heads.
    """

    scans: dict[str, Scan] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    signatories: dict[str, None] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """Of all logs, in the order of time."""
        every = (record for scan in self.scans.values() for record in scan.records)
        return sorted(every, key=lambda record: (record.time, record.log, record.number))


def read_logs(folder: Path, heads: Path, trusted: Trusted | None) -> Logs:
    """Read all logs of a folder, and verify them where somebody is trusted.

    Args:
        folder: Of the logs.
        heads: Of their signed heads.
        trusted: Whom heads are accepted from; None: the logs are only read.

    Raises:
        DataError: They cannot be read, or there are none.
    """
    found = Logs()
    names = sorted({*_names(folder, LOG), *_names(heads, HEADS)})
    if not names:
        raise DataError("holds no audit log", where=str(folder), remedy="check the path")
    for name in names:
        path = folder / (name + LOG)
        if not path.is_file():
            found.findings.append(Finding(name, 0, "the log is missing, its heads are there"))
            continue
        found.scans[name] = scan = chain.scan(path)
        if trusted is not None:
            signed = chain.read_heads(heads / (name + HEADS), name, trusted)
            found.findings += chain.check(scan, signed)
            found.signatories |= signed.signatories
    if trusted is not None:
        for scan in list(found.scans.values()):
            found.findings += _check_witnessed(scan, found.scans)
    return found


def _names(folder: Path, suffix: str) -> Iterator[str]:
    with reading(folder):
        entries = [entry.name for entry in os.scandir(folder)]
    for entry in entries[:MOST_LOGS]:
        if entry.endswith(suffix) and (suffix == HEADS or not entry.endswith(HEADS)):
            yield entry.removesuffix(suffix)


def _check_witnessed(witness: Scan, scans: dict[str, Scan]) -> Iterator[Finding]:
    """What a log has seen of others has to be there still."""
    for record in witness.records:
        known = record.details.get("known")
        if record.action != "log.opened" or not isinstance(known, list):
            continue
        for entry in known:
            name, _, rest = entry.partition(":")
            count, _, digest = rest.partition(":")
            scan, wanted = scans.get(name), int(count) if count.isdecimal() else 0
            seen = f"{witness.name} has seen {wanted} record(s) of it"
            if scan is None:
                yield Finding(name, 0, f"the log is missing: {seen}")
            elif len(scan.digests) < wanted and not scan.findings:
                what = f"records are missing after this line: {seen}"
                yield Finding(name, len(scan.digests), what)
            elif wanted and len(scan.digests) >= wanted and scan.digests[wanted - 1] != digest:
                yield Finding(name, wanted, f"the log was written anew: {seen} that were others")


@dataclass(frozen=True)
class Link:
    """An event in the history of an object.

    Attributes:
        depth: How far it is from the object.
        record: The event.
    """

    depth: int
    record: Record


def trace(records: list[Record], digest: str) -> list[Link]:
    """How an object came to be, and what became of it.

    From the events that name the object to those that they belong to, from there to what was
    opened, loaded and written by the same, and on to where what was loaded came from.

    Args:
        records: Of all logs.
        digest: SHA-256 of the object.

    Returns:
        Events, what lies further back deeper; empty: nothing is known of it.
    """
    by_event = {record.event: record for record in records}
    by_digest: dict[str, list[Record]] = {}
    by_related: dict[str, list[Record]] = {}
    for record in records:
        by_digest.setdefault(record.digest, []).append(record)
        by_related.setdefault(record.related, []).append(record)
    found: list[Link] = []
    seen: set[str] = set()

    def take(record: Record, depth: int) -> bool:
        if record.event in seen:
            return False
        seen.add(record.event)
        found.append(Link(depth, record))
        return True

    waiting = [(digest, 0)] if digest else []
    while waiting:
        wanted, depth = waiting.pop()
        for record in by_digest.get(wanted, []):
            start = by_event.get(record.related)
            if not take(record, depth) or start is None or not take(start, depth + 1):
                continue
            for beside in by_related[start.event]:
                if beside.action in ("checkpoint.saved", "data.read"):
                    continue
                if take(beside, depth + 2) and beside.action == "checkpoint.loaded":
                    waiting.append((beside.digest, depth + 3))
    return found
