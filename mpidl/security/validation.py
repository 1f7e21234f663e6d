"""Validation of a chain of certificates up to the site's root (RFC 5280, section 6, all by hand).

`cryptography.x509.verification` knows neither Ed25519 nor purposes of one's own (both refused as of
version 50), so each rule is checked here, from the root down: nothing of a certificate is believed
before its issuer's signature is. The profile is closed: what `mpidl.security.certificates` does not
make is refused, even where RFC 5280 would let it pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from mpidl.errors import SecurityError
from mpidl.security.certificates import (
    MALFORMED,
    MOST_CERTIFICATES,
    SKEW,
    basic_constraints,
    key_usage,
)
from mpidl.security.der import signed
from mpidl.security.names import PURPOSES, RULES, Name, Purpose, parse_uri

REISSUE = "ask the site's authority for a certificate ('mpidl keys issue')"
TLS: tuple[Purpose, ...] = ("login", "server")
P256: tuple[Purpose, ...] = (*TLS, "sign")  # for what other programs verify
_CRITICAL = {
    ExtensionOID.BASIC_CONSTRAINTS: True,
    ExtensionOID.KEY_USAGE: True,
    ExtensionOID.EXTENDED_KEY_USAGE: True,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME: False,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
}


def refuse(reason: str, certificate: x509.Certificate, remedy: str = REISSUE) -> SecurityError:
    """The error of a certificate, by its number: an unchecked name could be any text."""
    where = f"certificate {certificate.serial_number:040x}"
    return SecurityError(reason, where=where, remedy=remedy)


def check_root(root: x509.Certificate) -> Name:
    """The name of a site, from its root certificate.

    Raises:
        SecurityError: It is no root certificate.
    """
    check_issued(root, root)
    name = check_profile(root, authority=True)
    if name.kind != "site":
        raise refuse("is not the root of a site", root)
    return name


def check_path(
    chain: Sequence[x509.Certificate], root: x509.Certificate, purpose: Purpose, at: datetime
) -> Name:
    """The name of the holder of a chain of certificates.

    Args:
        chain: The holder's certificate, then its issuers, without the root.
        root: Of the site, trusted: `check_root` was asked when it was loaded.
        purpose: For which the holder presents it.
        at: The time, with time zone.

    Raises:
        SecurityError: It is not valid; each rule has its own message.
    """
    if not 1 <= len(chain) <= MOST_CERTIFICATES:
        raise SecurityError(
            f"has {len(chain)} certificates",
            where="chain of certificates",
            remedy=REISSUE,
        )
    site = check_profile(root, authority=True)
    check_time(root, site, at)
    issuer, above = root, site
    for depth, certificate in reversed(list(enumerate(chain))):
        check_issued(certificate, issuer)
        name = check_profile(certificate, authority=depth > 0)
        check_time(certificate, name, at)
        check_length(certificate, issuer, depth)
        check_issuer(certificate, name, above)
        check_purpose(certificate, name, purpose)
        issuer, above = certificate, name
    check_key(chain[0], purpose)
    return above


def check_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Refuse a certificate that `issuer` has not signed.

    Raises:
        SecurityError: The signature, the issuer's name or its key identifier is another.
    """
    try:
        algorithm = certificate.signature_algorithm_oid
        if (
            not isinstance(issuer.public_key(), Ed25519PublicKey)
            or algorithm != SignatureAlgorithmOID.ED25519
        ):
            raise refuse("is not signed with Ed25519", certificate)
        certificate.verify_directly_issued_by(issuer)
        one = signed(certificate.tbs_certificate_bytes, certificate.signature)
        if certificate.public_bytes(Encoding.DER) != one:
            raise refuse("was not issued by this site, or was changed", certificate)
        if issuer is not certificate and _issuer_key(certificate) != _own_key(issuer):
            raise refuse("names another key of its issuer", certificate)
    except (*MALFORMED, InvalidSignature, x509.ExtensionNotFound) as error:
        raise refuse("was not issued by this site, or was changed", certificate) from error


def _own_key(certificate: x509.Certificate) -> bytes:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    made = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    return extension.value.digest if extension.value == made else b""


def _issuer_key(certificate: x509.Certificate) -> bytes | None:
    extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    return extension.value.key_identifier


def check_profile(certificate: x509.Certificate, *, authority: bool) -> Name:
    """The holder's name; refuses certificates that are not made as ours are.

    Raises:
        SecurityError: Extensions are missing, unknown or not critical; the name is malformed; the
            certificate may issue others but should not, or the other way round.
    """
    try:
        extensions = {found.oid: found for found in certificate.extensions}
        key = certificate.public_key()
    except MALFORMED as error:
        raise refuse("is malformed", certificate) from error
    if certificate.version is not x509.Version.v3 or certificate.serial_number <= 0:
        raise refuse("is malformed", certificate)
    if any(_CRITICAL.get(oid) is not found.critical for oid, found in extensions.items()):
        raise refuse("has an unknown extension, or one that should be critical", certificate)
    name = _holder(certificate, extensions)
    if (name.kind in ("site", "submit")) != authority:
        use = "is not allowed to issue certificates" if authority else "is an issuer's own"
        raise refuse(use, certificate)
    if _value(extensions, ExtensionOID.BASIC_CONSTRAINTS) != basic_constraints(name):
        raise refuse("has other basic constraints than its kind: it must not issue", certificate)
    if _value(extensions, ExtensionOID.KEY_USAGE) != key_usage(name, key):
        raise refuse("has another key usage than its kind", certificate)
    required = set(_CRITICAL)
    if name.kind == "site":
        required -= {ExtensionOID.EXTENDED_KEY_USAGE, ExtensionOID.AUTHORITY_KEY_IDENTIFIER}
    if set(extensions) != required:
        raise refuse("lacks an extension, or has one too many", certificate)
    return name


Extensions = dict[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]]


def _value(extensions: Extensions, oid: x509.ObjectIdentifier) -> object:
    return extensions[oid].value if oid in extensions else None


def holder(certificate: x509.Certificate) -> Name:
    """Whom a certificate names, not validated.

    Raises:
        SecurityError: The name is malformed.
    """
    try:
        return _holder(certificate, {found.oid: found for found in certificate.extensions})
    except MALFORMED as error:
        raise refuse("is malformed", certificate) from error


def _holder(certificate: x509.Certificate, extensions: Extensions) -> Name:
    """The one URI among the names; the distinguished name must say the same."""
    found = _value(extensions, ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    names = list(found) if isinstance(found, x509.SubjectAlternativeName) else []
    uris = [each.value for each in names if isinstance(each, x509.UniformResourceIdentifier)]
    name = parse_uri(uris[0]) if len(uris) == 1 else None
    if name is None or certificate.subject != name.distinguished:
        raise refuse("has no name of mpidl, or two that differ", certificate)
    hosts = [each for each in names if isinstance(each, x509.DNSName | x509.IPAddress)]
    serves = "server" in RULES[name.kind].purposes
    if len(names) != 1 + len(hosts) or (hosts and not serves):
        raise refuse("has names that its kind may not have", certificate)
    return name


def check_time(certificate: x509.Certificate, name: Name, at: datetime) -> None:
    """Refuse a certificate outside its time, or of a longer time than its kind may have.

    Raises:
        SecurityError: It is not valid at that time.
    """
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if at < start - SKEW:
        raise refuse(f"is not valid yet: it begins at {start:%Y-%m-%d %H:%M:%S} UTC", certificate)
    if at > end + SKEW:
        raise refuse(f"expired at {end:%Y-%m-%d %H:%M:%S} UTC", certificate)
    if end - start > RULES[name.kind].longest:
        raise refuse(f"lives longer than a {name.kind} certificate may", certificate)


def check_length(certificate: x509.Certificate, issuer: x509.Certificate, depth: int) -> None:
    """Refuse a path with more issuers below one than that one allows.

    Args:
        certificate: In the path.
        issuer: Its issuer.
        depth: How many certificates are below it.

    Raises:
        SecurityError: There are too many.
    """
    length = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    if length is None or length < depth:
        raise refuse("exceeds the length of path that its issuer allows", certificate)


def check_issuer(certificate: x509.Certificate, name: Name, above: Name) -> None:
    """Refuse a certificate whose issuer may not issue for that name.

    Raises:
        SecurityError: It is of another site, or a job of somebody else, or not a job at all.
    """
    if name.site != above.site:
        raise refuse(f"is of the site {name.site}, not of {above.site}", certificate)
    if above.kind == "submit" and name.kind != "job":
        raise refuse("was issued by a submitter, who may issue for jobs only", certificate)
    if name.kind == "job" and (above.kind != "submit" or above.name != name.submitter):
        raise refuse("is of a job, but was not issued by that job's submitter", certificate)


def check_purpose(certificate: x509.Certificate, name: Name, purpose: Purpose) -> None:
    """Refuse a purpose that a certificate or its kind does not have; issuers pass theirs on only.

    Raises:
        SecurityError: It may not be used so.
    """
    found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if PURPOSES[purpose] not in found or purpose not in RULES[name.kind].purposes:
        raise refuse(f"is not for {purpose}", certificate)


def check_key(certificate: x509.Certificate, purpose: Purpose) -> None:
    """Refuse a certificate whose key cannot do what its purpose asks.

    Raises:
        SecurityError: The key is of another kind.
    """
    key = certificate.public_key()
    if purpose == "seal":
        fits = isinstance(key, X25519PublicKey)
    else:
        fits = isinstance(key, Ed25519PublicKey) or (purpose in P256 and is_p256(key))
    if not fits:
        raise refuse(f"has a key that cannot be used for {purpose}", certificate)


def is_p256(key: object) -> bool:
    """Whether a public key is one of ECDSA on the curve P-256."""
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
