"""What commands and runs tell the audit log: rank 0 writes it; nothing where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mpidl.comm.context import Context
from mpidl.errors import SecurityError
from mpidl.extras import load_extra
from mpidl.files import reading
from mpidl.security.sealed_file import content_sha256
from mpidl.security.section import SecurityConfig, shared_security

if TYPE_CHECKING:
    from mpidl.security.audit.log import AuditLog
    from mpidl.security.audit.record import Decision, Value


class Journal:
    """The audit log of this job on rank 0; elsewhere, and without an audit, it takes nothing.

    Args:
        log: To write; None: none.
        wanted: Whether any rank writes one.
    """

    def __init__(self, log: AuditLog | None = None, *, wanted: bool = False) -> None:
        self._log = log
        self.wanted = wanted

    @staticmethod
    def open(security: SecurityConfig, context: Context) -> Journal:
        """As the settings say. Collective.

        Raises:
            MpidlError: The log cannot be written, or is not intact.
        """
        audit = security.audit
        if not audit.folder:
            return Journal()
        log: AuditLog | None = None
        with context.fail_together("opening the audit log"):
            if context.is_root:
                load_extra("cryptography", "the audit log")
                from mpidl.security.audit.log import AuditLog
                from mpidl.security.signer import load_signer

                signer = load_signer(security.identity)
                folder = Path(audit.folder)
                log = AuditLog(folder, Path(audit.heads or folder), signer, audit.every)
        return Journal(log, wanted=True)

    @property
    def writes(self) -> bool:
        """Whether this rank writes the log."""
        return self._log is not None

    def add(
        self,
        action: str,
        *,
        object: object = "",
        digest: str = "",
        rank: int = 0,
        decision: Decision = "done",
        related: str = "",
        details: Mapping[str, Value] | None = None,
    ) -> str:
        """See `AuditLog.add`; the empty name where nothing is written."""
        if self._log is None:
            return ""
        return self._log.add(
            action,
            object=str(object),
            digest=digest,
            rank=rank,
            decision=decision,
            related=related,
            details=details,
        )

    def add_file(
        self,
        action: str,
        path: Path | str,
        *,
        related: str = "",
        details: Mapping[str, Value] | None = None,
    ) -> str:
        """As `add`, of a file with its SHA-256."""
        if self._log is None:
            return ""
        with reading(path):
            digest = content_sha256(Path(path))
        where = Path(path).absolute()
        return self.add(action, object=where, digest=digest, related=related, details=details)

    def sign_head(self) -> None:
        """Sign how far the log has come."""
        if self._log is not None:
            self._log.sign_head()

    def close(self) -> None:
        """End the log."""
        if self._log is not None:
            self._log.close()
            self._log = None


class Task:
    """A command in the audit log: what it does belongs to its start.

    Args:
        journal: Takes the records; None: nothing does.
        event: Of the start.
    """

    def __init__(self, journal: Journal | None = None, event: str = "") -> None:
        self.journal = journal or Journal()
        self.event = event

    def add(
        self, action: str, *, object: object = "", decision: Decision = "done", **details: Value
    ) -> None:
        """Record something without a digest."""
        self.journal.add(
            action, object=object, decision=decision, related=self.event, details=details
        )

    def tell(self, event: str, *, decision: Decision = "denied", **fields: object) -> None:
        """Record what was decided of a client: KIND.WHAT, and what is known of it."""
        details = {name: str(value)[:500] for name, value in fields.items()}
        self.journal.add(event, decision=decision, related=self.event, details=details)

    def add_file(self, action: str, path: Path | str, **details: Value) -> None:
        """Record what is done with a file, with its SHA-256."""
        self.journal.add_file(action, path, related=self.event, details=details)

    def add_data(self, path: Path | str) -> None:
        """Record that data are opened: a data set, by its manifest, or a raw file."""
        manifest = Path(path) / "manifest.json"
        if self.journal.writes and manifest.is_file():
            with reading(manifest):
                digest = content_sha256(manifest)
            where = Path(path).absolute()
            self.journal.add("data.opened", object=where, digest=digest, related=self.event)
        elif Path(path).is_file():
            self.add_file("data.opened", path)
        else:
            self.add("data.opened", object=path)


@contextmanager
def audited(command: str, context: Context, object: object) -> Iterator[Task]:
    """A block whose start and end are in the audit log, if `MPIDL_SECURITY` asks for one.

    Collective, where several ranks pass it.

    Args:
        command: Its name.
        context: The ranks.
        object: What it is about.
    """
    journal = Journal.open(shared_security(context), context)
    start = journal.add(f"{command}.started", object=object, details={"ranks": context.size})
    try:
        yield Task(journal, start)
        journal.add(f"{command}.finished", object=object, related=start)
    except BaseException as error:
        denied = isinstance(error, SecurityError)
        journal.add(
            f"{command}.failed",
            object=object,
            decision="denied" if denied else "failed",
            related=start,
            details={"error": str(error)[:2000] or type(error).__name__},
        )
        raise
    finally:
        journal.close()
