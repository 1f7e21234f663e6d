"""Who one is (`Identity`: certificates and private keys), and whom one believes (`Trust`).

Files in the folder of identities, `~/.config/mpidl/keys` or MPIDL_KEYS:

    NAME/certificate.pem           certificates of NAME, its own first, without the root
    NAME/key.pem                   Ed25519: signs, logs in
    NAME/tls-certificate.pem       certificates of the key for TLS
    NAME/tls.pem                   ECDSA P-256: for programs whose TLS knows no Ed25519 (gRPC)
    NAME/signing-certificate.pem   certificates of the key for signatures
    NAME/signing.pem               ECDSA P-256: for programs that verify no Ed25519 (model-signing)
    NAME/sealing-certificate.pem   certificates of the sealing key
    NAME/sealing.pem               X25519: opens what is sealed for NAME
    NAME/submit-certificate.pem    of who submits jobs: issues the certificates of jobs
    NAME/submit.pem                its key
    NAME/retired/SERIAL.pem        sealing keys of before, for what is still sealed for them
    .seen.json                     the highest numbers of lists and policies seen so far
    .authority/                    of an administrator, see `mpidl.security.authority`

and in that of the site, `~/.config/mpidl/site` or MPIDL_SITE:

    root.pem                       the site's root certificate
    revoked.crl                    its list of revoked certificates
    policy.toml, policy.toml.sig   its policy
    certificates/NAME/             public copies of the certificates of NAME
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mpidl.errors import SecurityError
from mpidl.security import keystore, revocation
from mpidl.security.certificates import MOST_BYTES, fingerprint, load_chain
from mpidl.security.names import WORD, Kind, Purpose
from mpidl.security.subject import Subject
from mpidl.security.validation import check_path, check_root, holder

MATCH = "put the certificate there that was made for that key, or have new ones made"


@dataclass(frozen=True)
class Identity:
    """Who one is.

    Attributes:
        name: Name of the person, service, node or job.
        kind: What it names.
        chain: Its certificates, its own first, without the root.
        key: Its signing key.
        sealing_key: Opens what is sealed for it, if it has one.
        sealing_chain: The certificates of that key.
        submitter: Of a job: who submitted it.
        tls_key: Its key for TLS, if it has one.
        tls_chain: The certificates of that key.
    """

    name: str
    kind: Kind
    chain: tuple[x509.Certificate, ...]
    key: Ed25519PrivateKey = field(repr=False)
    sealing_key: X25519PrivateKey | None = field(default=None, repr=False)
    sealing_chain: tuple[x509.Certificate, ...] = ()
    submitter: str = ""
    tls_key: EllipticCurvePrivateKey | None = field(default=None, repr=False)
    tls_chain: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True)
class Trust:
    """Whom one believes: the site's root, but for what it has revoked.

    Attributes:
        root: The site's root certificate.
        revocations: Its list of revoked certificates.
    """

    root: x509.Certificate
    revocations: revocation.Revocations

    @classmethod
    def load(cls, folder: Path | None = None) -> Trust:
        """Read the root and its list from their files.

        Args:
            folder: The site's (default: MPIDL_SITE).

        Raises:
            SecurityError: They are not right, others could change them, or the list is an old one.
            DataError: They cannot be read.
        """
        folder = folder or keystore.site_folder()
        path = folder / "root.pem"
        if not path.exists():
            raise SecurityError(
                "there is no site's root: nobody can be trusted",
                where=str(folder),
                remedy="fetch the site's folder from its authority, or set MPIDL_SITE",
            )
        chain = load_chain(keystore.read_public(path, MOST_BYTES), str(path))
        check_root(chain[0])
        trust = cls(chain[0], cls._load_list(folder, chain[0]))
        trust.seen.check("revoked", trust.revocations.number, str(folder / "revoked.crl"))
        return trust

    @staticmethod
    def _load_list(folder: Path, root: x509.Certificate) -> revocation.Revocations:
        path = folder / "revoked.crl"
        content = keystore.read_public(path, revocation.MOST_BYTES)
        return revocation.load_list(content, root, str(path))

    @property
    def site(self) -> str:
        """Name of the site."""
        return holder(self.root).site

    @property
    def seen(self) -> revocation.Seen:
        """The numbers that this user has seen of this site."""
        return revocation.Seen(keystore.keys_folder() / ".seen.json", fingerprint(self.root))

    def verify(
        self,
        chain: Sequence[x509.Certificate],
        purpose: Purpose,
        at: datetime | None = None,
        *,
        now: datetime | None = None,
    ) -> Subject:
        """Whom a chain of certificates names.

        That the other side has the key of `chain[0]` is the caller's to check.

        Args:
            chain: The holder's certificate first, without the root.
            purpose: What for it is presented.
            at: When the certificates must have been valid, with time zone (default: now). What was
                revoked is refused for all times: nothing proves that a signature is older.
            now: The present, at which the list of revoked certificates must not be stale.

        Raises:
            SecurityError: It is not valid; each reason has its own message.
        """
        present = now or datetime.now(UTC)
        name = check_path(chain, self.root, purpose, at or present)
        self.revocations.check(tuple(chain), present)
        serial, expires = f"{chain[0].serial_number:040x}", chain[0].not_valid_after_utc
        return Subject(name.site, name.kind, name.name, serial, expires, name.submitter)


def key_folder(name: str) -> Path:
    """The folder of an identity's keys."""
    return keystore.keys_folder() / name


def named_folder(named: str) -> Path:
    """The folder of an identity that a server or a client is told of.

    Args:
        named: A path of several parts, or a name in the folder of keys.
    """
    folder = Path(named).expanduser()
    return folder if len(folder.parts) > 1 else key_folder(named)


def load_identity(folder: Path, passphrase: bytes | None = None) -> Identity:
    """Read an identity from its folder; its certificates are not validated here (`Trust.verify`).

    Args:
        folder: With certificate.pem and key.pem.
        passphrase: Of the keys; asked for if they are encrypted and there is none.

    Raises:
        SecurityError: Others could read a key, the passphrase is wrong, or a key is not that of its
            certificate.
        DataError: A file cannot be read.
    """
    chain = load_certificates(folder / "certificate.pem")
    name = holder(chain[0])
    if passphrase is None:
        passphrase = keystore.passphrase_of(folder / "key.pem", str(name))
    key = _load_pair(folder, "key.pem", chain, passphrase)
    found: dict[str, tuple[keystore.PrivateKey | None, tuple[x509.Certificate, ...]]] = {}
    for use in ("sealing", "tls"):
        found[use] = (None, ())
        if (folder / f"{use}.pem").exists():
            path = folder / f"{use}-certificate.pem"
            own = load_certificates(path)
            if holder(own[0]) != name:
                raise SecurityError(f"is not of {name}", where=str(path), remedy=MATCH)
            found[use] = _load_pair(folder, f"{use}.pem", own, passphrase), own
    (sealing, sealing_chain), (tls, tls_chain) = found.values()
    assert isinstance(key, Ed25519PrivateKey)
    assert sealing is None or isinstance(sealing, X25519PrivateKey)
    assert tls is None or isinstance(tls, EllipticCurvePrivateKey)
    return Identity(
        name.name, name.kind, chain, key, sealing, sealing_chain, name.submitter, tls, tls_chain
    )


KINDS: dict[str, type[keystore.PrivateKey]] = {
    "key.pem": Ed25519PrivateKey,
    "sealing.pem": X25519PrivateKey,
    "tls.pem": EllipticCurvePrivateKey,
}


def _load_pair(
    folder: Path, file: str, chain: tuple[x509.Certificate, ...], passphrase: bytes | None
) -> keystore.PrivateKey:
    """A private key, if it is of its kind and that of its certificate."""
    key = keystore.load_key(folder / file, passphrase)
    if not isinstance(key, KINDS[file]) or key.public_key() != chain[0].public_key():
        raise SecurityError(
            "is not the key of its certificate", where=str(folder / file), remedy=MATCH
        )
    return key


def retired_sealing_keys(
    folder: Path, passphrase: bytes | None = None
) -> dict[str, X25519PrivateKey]:
    """Sealing keys of before: number of their certificate, in hexadecimal -> key.

    Raises:
        SecurityError: Others could read one, the passphrase is wrong, or it is no such key.
        DataError: A file cannot be read.
    """
    found = {}
    for path in sorted((folder / "retired").glob("*.pem")):
        if passphrase is None:
            passphrase = keystore.passphrase_of(path, str(folder))
        key = keystore.load_key(path, passphrase)
        if not isinstance(key, X25519PrivateKey):
            raise SecurityError("is no sealing key", where=str(path), remedy="remove it")
        found[path.stem] = key
    return found


def load_published(name: str, role: str = "sealing-certificate") -> tuple[x509.Certificate, ...]:
    """The public certificates of somebody in the site, not validated.

    Args:
        name: Of a person, a service or a node.
        role: "certificate" or "sealing-certificate" (to seal something for `name`).

    Raises:
        SecurityError: There are none, they are of somebody else, or others could change them.
        DataError: They cannot be read.
    """
    path = keystore.site_folder() / "certificates" / name / f"{role}.pem"
    if not WORD.fullmatch(name) or not path.exists():
        raise SecurityError(
            f"there is no {role} of {name[:80]!r}",
            where=str(keystore.site_folder()),
            remedy="correct the name, or fetch the site's certificates from its authority",
        )
    chain = load_certificates(path)
    if holder(chain[0]).name != name:
        raise SecurityError(
            f"is of {holder(chain[0])}, not of {name}",
            where=str(path),
            remedy="find out who put it there; fetch the site's certificates again",
        )
    return chain


def load_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """A chain of certificates from its file, not validated.

    Raises:
        SecurityError: It is none, or others could change it.
        DataError: It cannot be read.
    """
    return load_chain(keystore.read_public(path, MOST_BYTES), str(path))
