"""X.509 certificates as mpidl makes them (RFC 5280): Ed25519 signatures, few extensions, all used.

Every certificate has: basic constraints, key usage and (but for the root) extended key usage, all
critical; one URI that names its holder (`mpidl.security.names`); the identifiers of its key and of
its issuer's. Servers have host names beside. Validation refuses whatever has more or less.

Keys are Ed25519, but for two uses: X25519 to seal for somebody, and ECDSA (P-256) for programs
that know no Ed25519: TLS of gRPC (BoringSSL), signatures of model-signing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from mpidl.errors import ConfigError, SecurityError
from mpidl.security.names import PURPOSES, RULES, Name, Purpose

SKEW = timedelta(minutes=2)  # by which clocks may differ
MOST_CERTIFICATES = 4  # of a chain in a file
MOST_BYTES = 32 << 10  # of a file with a chain
MOST_HOSTS = 16
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_SEPARATOR = b"-----END CERTIFICATE-----\n"
# What `cryptography` raises of malformed certificates
MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

Key = Ed25519PublicKey | X25519PublicKey | EllipticCurvePublicKey


@dataclass(frozen=True)
class Wanted:
    """A certificate to be made.

    Attributes:
        name: Of its holder.
        key: Its public key.
        purposes: What it may be used for; of an issuer: what the certificates below it may be.
        lifetime: From `start` on.
        hosts: Names and addresses of a server.
        start: When it begins to be valid, in UTC.
    """

    name: Name
    key: Key
    purposes: Collection[Purpose]
    lifetime: timedelta
    hosts: Sequence[str] = ()
    start: datetime | None = None


@dataclass(frozen=True)
class Issuer:
    """Who issues certificates: the site's root, or the submit side of jobs.

    Attributes:
        chain: Its certificate and those above, without the root; of the root: the root.
        key: Its private key.
    """

    chain: tuple[x509.Certificate, ...]
    key: Ed25519PrivateKey

    def issue(self, wanted: Wanted) -> x509.Certificate:
        """Make a certificate.

        Raises:
            ConfigError: Such a certificate would never be accepted.
        """
        check_wanted(wanted)
        above = self.chain[0]
        builder = _builder(wanted).issuer_name(above.subject)
        identifier = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        made = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        return builder.add_extension(made, False).sign(self.key, None)


def make_root(name: Name, key: Ed25519PrivateKey, lifetime: timedelta) -> x509.Certificate:
    """The self-signed certificate of a site: one certificate may issue others below it."""
    wanted = Wanted(name, key.public_key(), (), lifetime)
    check_wanted(wanted)
    return _builder(wanted).issuer_name(name.distinguished).sign(key, None)


def check_wanted(wanted: Wanted) -> None:
    """Refuse to make what `mpidl.security.validation` would not accept.

    Raises:
        ConfigError: It lives too long, or may not have one of its purposes or hosts.
    """
    rules, kind = RULES[wanted.name.kind], wanted.name.kind
    if not timedelta(0) < wanted.lifetime <= rules.longest:
        raise ConfigError(
            f"{wanted.name}: {wanted.lifetime} is no lifetime of a {kind} certificate",
            remedy=f"choose one of at most {rules.longest.days} days",
        )
    wrong = sorted(set(wanted.purposes) - rules.purposes)
    if wrong or (not wanted.purposes and kind != "site"):
        raise ConfigError(
            f"{wanted.name}: a {kind} certificate cannot be for {', '.join(wrong) or 'nothing'}",
            remedy=f"choose among {', '.join(sorted(rules.purposes))}",
        )
    if (wanted.hosts and "server" not in wanted.purposes) or len(wanted.hosts) > MOST_HOSTS:
        raise ConfigError(
            f"{wanted.name}: has {len(wanted.hosts)} hosts",
            remedy=f"name up to {MOST_HOSTS} hosts, of services and nodes only",
        )


def general_names(name: Name, hosts: Sequence[str]) -> list[x509.GeneralName]:
    """The holder's URI, then host names and addresses.

    Raises:
        ConfigError: A host is neither a name nor an address.
    """
    found: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name.uri)]
    for host in hosts:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError as error:
            if not _HOST.fullmatch(host):
                raise ConfigError(
                    f"{host[:80]!r} is neither the name nor the address of a host",
                    remedy="name a host in small letters, such as node7.cluster, or its address",
                ) from error
            found.append(x509.DNSName(host))
    return found


def key_usage(name: Name, key: object) -> x509.KeyUsage:
    """What the key of a certificate may do: sign, agree on keys, or sign certificates."""
    issues, root = name.kind in ("site", "submit"), name.kind == "site"
    seals = isinstance(key, X25519PublicKey)
    return x509.KeyUsage(
        digital_signature=not issues and not seals,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=seals,
        key_cert_sign=issues,
        crl_sign=root,
        encipher_only=False,
        decipher_only=False,
    )


def basic_constraints(name: Name) -> x509.BasicConstraints:
    """Whether a certificate issues others, and how many issuers may be below it."""
    lengths = {"site": 1, "submit": 0}
    return x509.BasicConstraints(name.kind in lengths, lengths.get(name.kind))


def _builder(wanted: Wanted) -> x509.CertificateBuilder:
    """All but the issuer."""
    start = (wanted.start or datetime.now(UTC)).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(wanted.name.distinguished)
        .public_key(wanted.key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + wanted.lifetime)
        .add_extension(basic_constraints(wanted.name), True)
        .add_extension(key_usage(wanted.name, wanted.key), True)
    )
    if wanted.purposes:
        usage = x509.ExtendedKeyUsage([PURPOSES[purpose] for purpose in sorted(wanted.purposes)])
        builder = builder.add_extension(usage, True)
    names = x509.SubjectAlternativeName(general_names(wanted.name, wanted.hosts))
    identifier = x509.SubjectKeyIdentifier.from_public_key(wanted.key)
    return builder.add_extension(names, False).add_extension(identifier, False)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, in hexadecimal."""
    return certificate.fingerprint(SHA256()).hex()


def dump_chain(chain: Sequence[x509.Certificate]) -> bytes:
    """Certificates as PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


def load_chain(content: bytes, where: str) -> tuple[x509.Certificate, ...]:
    """Certificates from PEM, in exactly the form in which `dump_chain` writes them.

    PEM allows text between certificates, and several spellings of one certificate; here every
    byte of the file counts.

    Raises:
        SecurityError: They are malformed, too many or too large.
    """
    parts = [part + _SEPARATOR for part in content[:MOST_BYTES].split(_SEPARATOR)[:-1]]
    chain: tuple[x509.Certificate, ...] = ()
    if 1 <= len(parts) <= MOST_CERTIFICATES and len(content) <= MOST_BYTES:
        try:
            chain = tuple(map(x509.load_pem_x509_certificate, parts))
            [certificate.extensions for certificate in chain]
        except MALFORMED:
            chain = ()
    if not chain or dump_chain(chain) != content:
        raise SecurityError(
            "holds no certificates, or was changed",
            where=where,
            remedy="copy it again from where it was made, or ask for a new one",
        )
    return chain
