"""The site's authority: its root key certifies people, services and nodes, and revokes them.

Its folder (`.authority` in that of its administrator's keys) is best on a machine without network.
What others need of it, MPIDL_SITE holds: root.pem, revoked.crl, certificates/.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mpidl.errors import ConfigError, SecurityError, nearest
from mpidl.security import keystore, revocation
from mpidl.security.certificates import Issuer, dump_chain, make_root
from mpidl.security.identity import MATCH, load_certificates
from mpidl.security.keystore import site_folder
from mpidl.security.names import WORD, Name
from mpidl.security.validation import check_root, holder

LIST_DAYS = 30  # for which a list of revoked certificates holds, if nothing else is said
MOST_LIST_DAYS = 366
MOST_RECORD = 16 << 20


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """What the authority remembers; only who has its key can sign what follows from it.

    Attributes:
        number: Of the last list of revoked certificates.
        revoked: Serial numbers in hexadecimal -> seconds since 1970.
    """

    number: Annotated[int, msgspec.Meta(ge=0)] = 0
    revoked: dict[Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}$")], float] = {}


@dataclass(frozen=True)
class Authority:
    """An opened authority.

    Attributes:
        folder: With its key.
        site: The public folder.
        root: Its certificate.
        key: Its key.
    """

    folder: Path
    site: Path
    root: x509.Certificate
    key: Ed25519PrivateKey = field(repr=False)

    @property
    def issuer(self) -> Issuer:
        """Issues certificates below the root."""
        return Issuer((self.root,), self.key)

    @property
    def name(self) -> Name:
        """Name of the site."""
        return holder(self.root)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time issue or revoke."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def publish(self, name: Name, role: str, chain: tuple[x509.Certificate, ...]) -> None:
        """Keep a copy of a certificate, and put another where all find it.

        Args:
            name: Of its holder.
            role: One of `mpidl.security.requests.CERTIFICATES`.
            chain: The certificate.

        Raises:
            OSError: The file system refuses.
        """
        kept, published = self.folder / "issued" / name.name, published_folder(self.site, name.name)
        keystore.make_folder(kept)
        keystore.make_folder(published, 0o755)
        content = dump_chain(chain)
        keystore.write_private(kept / f"{role}.{chain[0].serial_number:040x}.pem", content)
        keystore.write_public(published / f"{role}.pem", content)

    def issued(self, name: str) -> tuple[x509.Certificate, ...]:
        """All certificates ever issued to a name.

        Raises:
            ConfigError: There are none.
            SecurityError: Copies of them were changed.
            DataError: They cannot be read.
        """
        files = (
            sorted((self.folder / "issued" / name).glob("*.pem")) if WORD.fullmatch(name) else []
        )
        if not files:
            names = [path.name for path in (self.folder / "issued").glob("*")]
            raise ConfigError(
                f"no certificate was issued to {name[:80]!r}",
                where=str(self.folder),
                remedy=nearest(name, sorted(names)) if names else "see 'mpidl keys show'",
            )
        return tuple(load_certificates(path)[0] for path in files)

    def revoked(self) -> set[int]:
        """The numbers of what it has revoked."""
        return {int(serial, 16) for serial in _read_record(self.folder).revoked}

    def revoke(self, serials: set[int], days: float = LIST_DAYS) -> int:
        """Sign a new list of revoked certificates.

        Args:
            serials: To be added to it; may be empty, to renew the list.
            days: For which it holds.

        Returns:
            The number of the list.

        Raises:
            ConfigError: It would hold for no time, or too long.
        """
        if not 0 < days <= MOST_LIST_DAYS:
            raise ConfigError(
                f"a list of revoked certificates cannot hold for {days} days",
                remedy=f"choose at most {MOST_LIST_DAYS} days; a week or a month is usual",
            )
        with self.locked():
            record = _read_record(self.folder)
            record.number += 1
            now = datetime.now(UTC).timestamp()
            record.revoked |= {
                f"{serial:040x}": record.revoked.get(f"{serial:040x}", now) for serial in serials
            }
            since = {
                int(serial, 16): datetime.fromtimestamp(when, UTC)
                for serial, when in record.revoked.items()
            }
            signed = revocation.make_list(
                self.root, self.key, record.number, since, timedelta(days=days)
            )
            # first the record: a number is never used twice
            keystore.write_private(self.folder / "record.json", msgspec.json.encode(record))
            keystore.write_public(self.site / "revoked.crl", signed)
        return record.number


def authority_folder() -> Path:
    """The folder of the authority."""
    return keystore.keys_folder() / ".authority"


def published_folder(site: Path, name: str) -> Path:
    """Where the public certificates of a name lie."""
    return site / "certificates" / name


def create(name: Name, passphrase: bytes, lifetime: timedelta, list_days: float) -> Authority:
    """Make the root of a site, and its first list, which is empty.

    Args:
        name: Of the site.
        passphrase: Encrypts the root's key.
        lifetime: Of the root.
        list_days: For which the list holds.

    Raises:
        ConfigError: There is one already, or the lifetime is impossible.
        OSError: The file system refuses.
    """
    folder, site = authority_folder(), site_folder()
    for path in (folder / "root.pem", site / "root.pem"):
        if path.exists():
            raise ConfigError(
                "there is a root already, and what it has signed would be lost",
                where=str(path),
                remedy="set MPIDL_KEYS and MPIDL_SITE to other folders for another site",
            )
    key = Ed25519PrivateKey.generate()
    root = make_root(name, key, lifetime)
    keystore.make_folder(folder)
    keystore.make_folder(site, 0o755)
    keystore.write_private(folder / "root-key.pem", keystore.dump_key(key, passphrase))
    for path in (folder, site):
        keystore.write_public(path / "root.pem", dump_chain((root,)))
    keystore.write_private(folder / "record.json", msgspec.json.encode(Record()))
    authority = Authority(folder, site, root, key)
    authority.revoke(set(), list_days)
    return authority


def open_authority(passphrase: bytes | None = None) -> Authority:
    """The authority of this machine.

    Args:
        passphrase: Of its key; asked for if there is none.

    Raises:
        ConfigError: There is none here.
        SecurityError: Its files are not right, or the passphrase is wrong.
        DataError: A file cannot be read.
    """
    folder = authority_folder()
    if not (folder / "root-key.pem").exists():
        raise ConfigError(
            "there is no authority on this machine",
            where=str(folder),
            remedy="start it where the authority is, or make one with 'mpidl keys init'",
        )
    root = load_certificates(folder / "root.pem")[0]
    check_root(root)
    key = keystore.load_key(folder / "root-key.pem", passphrase)
    if not isinstance(key, Ed25519PrivateKey) or key.public_key() != root.public_key():
        where = str(folder / "root-key.pem")
        raise SecurityError("is not the key of its certificate", where=where, remedy=MATCH)
    return Authority(folder, site_folder(), root, key)


def _read_record(folder: Path) -> Record:
    path = folder / "record.json"
    try:
        return msgspec.json.decode(keystore.read_private(path, MOST_RECORD), type=Record)
    except msgspec.MsgspecError as error:
        raise SecurityError(
            "is damaged: it holds what was revoked",
            where=str(path),
            remedy="restore it from a backup, so that nothing revoked becomes valid again",
        ) from error
