"""Whom a certificate or a token names; what a policy is asked about, and a record tells."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Subject:
    """Whom a valid chain of certificates, or a valid token, names.

    Attributes:
        site: Its site.
        kind: What it is; "token" for the holder of a token.
        name: Its name.
        submitter: Of a job: who submitted it.
        serial: Number of its certificate, in hexadecimal; of a token, its identifier.
        expires: Until when that is valid.
        issuer: Of a token: who signed it, as "service:portal".
        roles: Of a token: to which it is limited.
    """

    site: str
    kind: str
    name: str
    serial: str = ""
    expires: datetime | None = None
    submitter: str = ""
    issuer: str = ""
    roles: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For messages and records: kind, name, submitter or issuer."""
        above = f" of {self.submitter}" if self.submitter else ""
        above = f" of {self.issuer}" if self.issuer else above
        return f"{self.kind}:{self.name}{above}"
