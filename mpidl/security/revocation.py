"""The site's list of revoked certificates (RFC 5280, section 5): signed, numbered, and it expires.

A verifier keeps the highest number that it has seen (`Seen`), so that an old list put back in place
of a newer one is refused, as is one that should have been replaced by now.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from mpidl.errors import SecurityError
from mpidl.security import der
from mpidl.security.certificates import MALFORMED, SKEW
from mpidl.security.keystore import make_folder, read_public, write_private

MOST_BYTES = 4 << 20
MOST_STATE = 1 << 16
REFRESH = "have the site's authority sign a new list ('mpidl keys revoke'), and fetch it"


@dataclass(frozen=True)
class Revocations:
    """A list whose signature was checked.

    Attributes:
        number: Grows with each list.
        made: When it was signed.
        until: When the next one must be there.
        serials: Numbers of the revoked certificates. Numbers are random, so that those of jobs,
            which the root did not issue itself, stand in the same list.
    """

    number: int
    made: datetime
    until: datetime
    serials: frozenset[int]

    def check(self, chain: tuple[x509.Certificate, ...], at: datetime) -> None:
        """Refuse revoked certificates, and to answer from a list that is out of date.

        Raises:
            SecurityError: One of them is revoked, or nobody knows.
        """
        if at > self.until + SKEW:
            raise SecurityError(
                f"the list of revoked certificates is stale: it held until {self.until:%F %T} UTC",
                where=f"list number {self.number}",
                remedy=REFRESH,
            )
        if at < self.made - SKEW:
            raise SecurityError(
                f"the list of revoked certificates is from the future: {self.made:%F %T} UTC",
                where=f"list number {self.number}",
                remedy="correct the clock of this machine",
            )
        for certificate in chain:
            if certificate.serial_number in self.serials:
                raise SecurityError(
                    "was revoked",
                    where=f"certificate {certificate.serial_number:040x}",
                    remedy="ask the site's authority for a new one, or why",
                )


def make_list(
    root: x509.Certificate,
    key: Ed25519PrivateKey,
    number: int,
    revoked: Mapping[int, datetime],
    lifetime: timedelta,
) -> bytes:
    """Sign a list.

    Args:
        root: The certificate of the site.
        key: Its key.
        number: Above those of all lists before.
        revoked: Serial numbers -> since when.
        lifetime: From now until the next list must be there.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    above = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(now)
        .next_update(now + lifetime)
        .add_extension(x509.CRLNumber(number), False)
        .add_extension(above, False)
    )
    for serial, since in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, None).public_bytes(Encoding.PEM)


def load_list(content: bytes, root: x509.Certificate, where: str) -> Revocations:
    """Parse and check a list.

    Raises:
        SecurityError: It is malformed, or not signed by the site.
    """
    try:
        found = x509.load_pem_x509_crl(content)
        whole = found.public_bytes(Encoding.PEM) == content
        one = der.signed(found.tbs_certlist_bytes, found.signature)
        signed = found.public_bytes(Encoding.DER) == one and _is_by(found, root)
        extensions = {each.oid: each.value for each in found.extensions}
        plain = set(extensions) == {
            ExtensionOID.CRL_NUMBER,
            ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        }
        number = extensions[ExtensionOID.CRL_NUMBER]
        until = found.next_update_utc
        # an entry with an extension may say less than that a certificate is revoked
        serials = frozenset(each.serial_number for each in found if not len(each.extensions))
    except (*MALFORMED, KeyError) as error:
        raise _not_ours(where) from error
    if not (whole and signed and plain and until) or len(serials) != len(found):
        raise _not_ours(where)
    assert isinstance(number, x509.CRLNumber)
    return Revocations(number.crl_number, found.last_update_utc, until, serials)


def _is_by(found: x509.CertificateRevocationList, root: x509.Certificate) -> bool:
    key = root.public_key()
    return (
        found.issuer == root.subject
        and isinstance(key, Ed25519PublicKey)
        and found.is_signature_valid(key)
    )


def _not_ours(where: str) -> SecurityError:
    return SecurityError(
        "is no list of revoked certificates that this site has signed, or was changed",
        where=where,
        remedy=REFRESH,
    )


class Seen:
    """The highest numbers that this user has seen: of lists of revoked certificates, of policies.

    Args:
        file: Where they are kept, for this user alone; not beside what is checked with them.
        root: Fingerprint of the root whose numbers they are.
    """

    def __init__(self, file: Path, root: str) -> None:
        self.file = file
        self.root = root

    def check(self, what: str, number: int, where: str) -> None:
        """Refuse a number below one that was seen, and remember a higher one.

        Args:
            what: "revoked" or "policy".
            number: Of what was read, after its signature was checked.
            where: Its file.

        Raises:
            SecurityError: It was rolled back, or the number cannot be kept.
        """
        if number < self._known(what):
            raise SecurityError(
                f"was rolled back: it has number {number}, and {self._known(what)} was seen before",
                where=where,
                remedy="find out who put the old file there, and fetch the newest one",
            )
        if number > self._known(what):
            self._keep(what, number)

    def _known(self, what: str) -> int:
        return self._read().get(self._key(what), 0)

    def _key(self, what: str) -> str:
        return f"{what}:{self.root}"

    def _read(self) -> dict[str, int]:
        if not self.file.exists():
            return {}
        content = read_public(self.file, MOST_STATE)
        try:
            return msgspec.json.decode(content, type=dict[str, Annotated[int, msgspec.Meta(ge=0)]])
        except msgspec.MsgspecError as error:
            raise SecurityError(
                "is damaged: it holds the numbers of the lists that were seen",
                where=str(self.file),
                remedy="find out who changed it; then remove it to start anew",
            ) from error

    def _keep(self, what: str, number: int) -> None:
        """Under a lock: others may keep numbers at the same time."""
        try:
            make_folder(self.file.parent)
            lock = os.open(self.file.parent, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = self._read()
                known[self._key(what)] = max(number, known.get(self._key(what), 0))
                write_private(self.file, msgspec.json.encode(known))
            finally:
                with suppress(OSError):
                    os.close(lock)
        except OSError as error:
            raise SecurityError(
                "the number of a newer list cannot be kept there, which guards against old ones",
                where=str(self.file),
                remedy="run 'mpidl keys show' once where that file can be written, or set "
                "MPIDL_KEYS to such a folder",
            ) from error
