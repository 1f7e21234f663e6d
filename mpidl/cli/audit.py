"""Verify the audit logs of a folder, show or export them, or trace where a checkpoint comes from.

Exit status of `verify`: 1 if a line was altered, removed, reordered or forged, or if a log has no
signed end (--unfinished accepts those of jobs that still run or were killed).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.verify import add_trusted, load_trusted

if TYPE_CHECKING:
    from mpidl.security.audit.folder import Logs
    from mpidl.security.audit.record import Record

NAME = "audit"
HELP = "verify, show, trace or export the audit log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("action", choices=list(_ACTIONS), help="what to do")
    parser.add_argument(
        "file", type=Path, nargs="?", help="trace: a checkpoint or another file; export: to write"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="of the logs (default: security.audit.folder in the file that MPIDL_SECURITY names)",
    )
    parser.add_argument("--heads", type=Path, help="of the signed heads, where kept apart")
    add_trusted(parser)
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="verify: accept logs without a signed end, of jobs that still run or were killed",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="show, export: records with this value, such as user=ada or action=export.written",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what is asked for."""
    from mpidl.errors import ConfigError
    from mpidl.extras import load_extra
    from mpidl.security.section import site_security

    load_extra("cryptography", "the audit log")
    from mpidl.security.audit.folder import read_logs

    audit = site_security().audit
    folder = args.folder or Path(audit.folder)
    if not args.folder and not audit.folder:
        raise ConfigError(
            "no folder is named", where="--folder", remedy="add --folder, that of the logs"
        )
    if args.action in ("trace", "export") and args.file is None:
        raise ConfigError(
            "no file is named", where=f"mpidl audit {args.action}", remedy="name one behind it"
        )
    heads = args.heads or (folder if args.folder or not audit.heads else Path(audit.heads))
    trusted = load_trusted(args.trusted) if args.action == "verify" or args.trusted else None
    result: dict[str, Any] = _ACTIONS[args.action](args, read_logs(folder, heads, trusted))
    return result


def _verify(args: argparse.Namespace, logs: Logs) -> dict[str, Any]:
    """All logs, or what is wrong with them."""
    bad = [one for one in logs.findings if not (one.unfinished and args.unfinished)]
    records = sum(len(scan.records) for scan in logs.scans.values())
    if not args.json:
        for finding in logs.findings:
            print(f"{'unfinished' if finding.unfinished else 'BROKEN'}: {finding}")
        words = "NOT INTACT" if bad else "intact"
        print(
            f"{words}: {len(logs.scans)} log(s), {records:,} record(s), heads signed by "
            f"{', '.join(logs.signatories) or 'nobody'}"
        )
    return {
        "logs": len(logs.scans),
        "records": records,
        "signatories": list(logs.signatories),
        "findings": [str(one) for one in logs.findings],
        "status": 1 if bad else 0,
    }


def _show(args: argparse.Namespace, logs: Logs) -> dict[str, Any]:
    """Records as lines for people, in the order of time."""
    chosen = _chosen(args.only, logs.records)
    if not args.json:
        for record in chosen:
            print(_line(record))
    return {"records": _plain(chosen) if args.json else len(chosen)}


def _trace(args: argparse.Namespace, logs: Logs) -> dict[str, Any]:
    """How a file came to be."""
    from mpidl.errors import DataError
    from mpidl.files import reading
    from mpidl.security.audit.folder import trace
    from mpidl.security.sealed_file import content_sha256

    with reading(args.file):
        digest = content_sha256(args.file)
    links = trace(logs.records, digest)
    if not links:
        raise DataError(
            "no audit log knows a file with these bytes",
            where=str(args.file),
            remedy="name the folder of the logs of the job that wrote it, or an unchanged copy",
        )
    if not args.json:
        for link in links:
            print("  " * link.depth + _line(link.record))
    history = [{"depth": link.depth} | _plain([link.record])[0] for link in links]
    return {"digest": digest, "history": history}


def _export(args: argparse.Namespace, logs: Logs) -> dict[str, Any]:
    """Records of all logs as one file of JSON lines, in the order of time."""
    import msgspec

    from mpidl.files import write_file

    chosen = _chosen(args.only, logs.records)
    write_file(args.file, b"".join(msgspec.json.encode(record) + b"\n" for record in chosen))
    if not args.json:
        print(f"{len(chosen):,} record(s): {args.file}")
    return {"records": len(chosen), "out": str(args.file)}


_ACTIONS = {"verify": _verify, "show": _show, "trace": _trace, "export": _export}


def _chosen(only: Iterable[str], records: list[Record]) -> list[Record]:
    """The records with certain values in fields.

    Raises:
        ConfigError: There is no such field.
    """
    import msgspec

    from mpidl.errors import ConfigError, nearest
    from mpidl.security.audit.record import Record

    names = [one.name for one in msgspec.structs.fields(Record)]
    for text in only:
        name, _, value = text.partition("=")
        if name not in names:
            raise ConfigError(
                f"{name!r} is no field", where=f"--only {text}", remedy=nearest(name, names)
            )
        records = [record for record in records if str(getattr(record, name)) == value]
    return records


def _plain(records: list[Record]) -> list[dict[str, Any]]:
    import msgspec

    return [{"event": record.event} | msgspec.to_builtins(record) for record in records]


def _line(record: Record) -> str:
    """A record for people; what could disturb a terminal is escaped."""
    details = ", ".join(f"{name}={value}" for name, value in record.details.items())
    decision = "" if record.decision == "done" else f" {record.decision.upper()}"
    digest = f" sha256:{record.digest[:16]}" if record.digest else ""
    rank = f" rank {record.rank}" if record.rank else ""
    words = (
        f"{record.time} {record.user} {record.event}{rank}: {record.action}{decision} "
        f"{record.object}{digest}{f' ({details})' if details else ''}"
    )
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
