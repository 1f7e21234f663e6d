"""Observers of a run that sign its checkpoints, and tell the audit log what it does."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

import mpidl
from mpidl.comm.context import Context
from mpidl.config import Config
from mpidl.data import Reader
from mpidl.errors import SecurityError
from mpidl.extras import load_extra
from mpidl.security.code import code_digest, revision
from mpidl.security.journal import Journal
from mpidl.security.section import site_security
from mpidl.security.statement import signature_path
from mpidl.train.admission import manifest_digest
from mpidl.train.checkpoint import BEST
from mpidl.train.events import EvaluationRecord, Observer, Result, RunStart, SavedRecord

FILES = 64  # named in one record


def security_observers(config: Config, context: Context) -> list[Observer]:
    """What the section `[security]` asks for; nothing without it. Collective.

    Raises:
        MpidlError: Nobody can sign, or there can be no log; on every rank.
    """
    security = config.security
    found: list[Observer] = []
    if security.sign_checkpoints:
        with context.fail_together("preparing to sign checkpoints"):
            found += [SigningObserver(security.identity)] if context.is_root else []
    journal = Journal.open(security, context)
    return [*found, AuditObserver(journal, config, context)] if journal.wanted else found


def sign_written(path: Path) -> None:
    """Sign a model that a command has written, where the site's settings sign checkpoints.

    Raises:
        MpidlError: There is no such identity, or its key cannot be used.
    """
    security = site_security()
    if security.sign_checkpoints:
        SigningObserver(security.identity).sign(path)


class SigningObserver(Observer):
    """Signs each checkpoint as it is written. On rank 0.

    Args:
        identity: Who signs.

    Raises:
        MpidlError: There is no such identity, or its key cannot be used.
    """

    def __init__(self, identity: str) -> None:
        load_extra("cryptography", "signing checkpoints")
        from mpidl.security.signer import load_signer

        self._signer = load_signer(identity)

    def sign(self, path: Path) -> Path:
        """Sign a file; returns that of the signature."""
        from mpidl.security.signing import sign

        return sign(path, self._signer)

    def saved(self, record: SavedRecord) -> None:
        """Sign the file; the best one has the same signature under its other name."""
        written = self.sign(record.path)
        if record.best:
            shutil.copyfile(written, signature_path(record.path.with_name(BEST)))


class AuditObserver(Observer):
    """Tells the audit log of a run: on all ranks, rank 0 writes.

    Args:
        journal: Takes the records.
        config: Of the run.
        context: The ranks.
    """

    def __init__(self, journal: Journal, config: Config, context: Context) -> None:
        self._journal = journal
        self._config = config
        self._context = context
        self._readers: Sequence[Reader] = ()
        self._told: list[int] = []  # files that the log knows of, for each reader
        self._finished = False
        self._start = journal.add(
            "train.started",
            object=Path(config.train.output).absolute(),
            digest=hashlib.sha256(
                msgspec.json.encode(config.to_tree(), order="sorted")
            ).hexdigest(),
            details={
                "ranks": context.size,
                "seed": config.train.seed,
                "model": config.model.name,
                "version": mpidl.__version__,
                "code": code_digest() if context.is_root else "",
                "revision": revision(),
            },
        )

    def run_started(self, start: RunStart) -> None:
        """Data, and what the run resumes from."""
        self._readers, self._told = start.readers, [0] * len(start.readers)
        if not self._context.is_root:
            return
        for reader in start.readers:
            self._journal.add(
                "data.opened",
                object=reader.folder.absolute(),
                digest=manifest_digest(reader.folder),
                related=self._start,
                details={"samples": len(reader), "files": len(reader.manifest.shards)},
            )
        if start.resumed is not None and start.step:
            self._journal.add_file(
                "checkpoint.loaded",
                start.resumed,
                related=self._start,
                details={"step": start.step},
            )
        self._journal.sign_head()

    def evaluated(self, record: EvaluationRecord) -> None:
        """What was found."""
        details = {"step": record.step, **record.result.record()}
        self._journal.add("train.evaluated", related=self._start, details=details)

    def saved(self, record: SavedRecord) -> None:
        """The files that all ranks have read since the last time, and the checkpoint."""
        news = [
            (str(reader.folder.absolute()), reader.files_read[told:])
            for reader, told in zip(self._readers, self._told, strict=True)
        ]
        self._told = [told + len(files) for told, (_, files) in zip(self._told, news, strict=True)]
        kind = list[tuple[str, list[str]]]
        for rank, parts in enumerate(self._context.allgather_object(news, kind)):
            for folder, files in parts:
                for first in range(0, len(files), FILES):
                    self._journal.add(
                        "data.read",
                        object=folder,
                        rank=rank,
                        related=self._start,
                        details={"files": files[first : first + FILES]},
                    )
        details = {"step": record.step, "best": record.best}
        self._journal.add_file(
            "checkpoint.saved", record.path, related=self._start, details=details
        )
        self._journal.sign_head()

    def run_finished(self, result: Result) -> None:
        """How it ended."""
        self._finished = True
        self._journal.add(
            "train.stopped" if result.stopped else "train.finished",
            object=result.checkpoint or "",
            related=self._start,
            details={"steps": result.steps, **result.quality.record()},
        )

    def close(self) -> None:
        """End the log; say so if the run has failed."""
        if not self._finished:
            error = sys.exception()
            self._finished = True
            self._journal.add(
                "train.failed",
                decision="denied" if isinstance(error, SecurityError) else "failed",
                related=self._start,
                details={"error": str(error)[:2000]},
            )
        self._journal.close()
