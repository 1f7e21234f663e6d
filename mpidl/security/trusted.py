"""Whom signatures are accepted from: public keys, and roots of certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mpidl.errors import SecurityError
from mpidl.files import reading
from mpidl.security.envelope import AGAIN, Envelope, encode_for_signing
from mpidl.security.identity import Trust
from mpidl.security.signer import PublicKey, is_signature, is_supported, key_hint
from mpidl.security.validation import check_path

SITE = "site"  # in place of a file
MOST_BYTES = 1 << 20  # of a file with keys, certificates or revocations
_ASK = "ask whoever signed for their public key or root, and add it to security.trusted"
# Critical extensions that a path check understands; others are refused (RFC 5280, 4.2)
_KNOWN = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)


@dataclass(frozen=True)
class Signatory:
    """Who has signed.

    Attributes:
        name: The common name in the certificate, or the first digits of the key's hint.
        fingerprint: SHA-256 of the certificate or of the key's PEM text, in hexadecimal.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Trusted:
    """Keys and roots that are believed.

    Attributes:
        keys: By their hint.
        roots: Certificates of authorities.
        revoked: (issuer, serial number) of certificates that their issuers have withdrawn.
        site: The site's own root and its list of revoked certificates.
    """

    keys: dict[str, PublicKey] = field(default_factory=dict)
    roots: tuple[x509.Certificate, ...] = ()
    revoked: frozenset[tuple[x509.Name, int]] = frozenset()
    site: Trust | None = None

    @staticmethod
    def load(paths: Sequence[Path | str]) -> Trusted:
        """From PEM files of public keys, of other roots, and of their revocation lists.

        Args:
            paths: The files; the word `SITE` stands for everybody in the site who may sign.

        Raises:
            SecurityError: One holds neither, or a revocation list is not signed by a root.
            DataError: One cannot be read.
        """
        keys: dict[str, PublicKey] = {}
        roots: list[x509.Certificate] = []
        lists: list[tuple[Path, x509.CertificateRevocationList]] = []
        site = Trust.load() if SITE in map(str, paths) else None
        for path in (Path(one) for one in paths if str(one) != SITE):
            with reading(path), open(path, "rb") as file:
                raw = file.read(MOST_BYTES)
            try:
                if b"BEGIN PUBLIC KEY" in raw:
                    key = load_pem_public_key(raw)
                    if not is_supported(key):
                        raise ValueError("kind of key")
                    assert isinstance(key, PublicKey)
                    keys[key_hint(key)] = key
                elif b"BEGIN X509 CRL" in raw:
                    lists.append((path, x509.load_pem_x509_crl(raw)))
                else:
                    roots += x509.load_pem_x509_certificates(raw)
            except ValueError as error:
                raise SecurityError(
                    "holds no public key, certificate or revocation list that can be used",
                    where=str(path),
                    remedy="name PEM files: keys of EC (P-256, P-384, P-521) or Ed25519",
                ) from error
        revoked = [entry for path, crl in lists for entry in _revoked(path, crl, roots)]
        return Trusted(keys, tuple(roots), frozenset(revoked), site)

    def verify(
        self, envelope: Envelope, payload_type: str, where: str, *, at: datetime | None = None
    ) -> Signatory:
        """Refuse an envelope unless somebody who is trusted has signed it as what it is used for.

        Args:
            envelope: As it was decoded.
            payload_type: The only one that is accepted.
            where: The file, for messages.
            at: When the certificates have to be valid; None: at the first moment of the signer's
                own, as in model-signing, since nothing tells the time of a signature.

        Raises:
            SecurityError: Nobody who is trusted has, or it is of another type.
        """
        if envelope.payload_type != payload_type:
            raise SecurityError("is a signature of something else", where=where, remedy=AGAIN)
        if envelope.chain:
            key, signatory = self._key_of_chain(envelope.chain, where, at)
        else:
            found = self.keys.get(envelope.hint)
            if found is None:
                raise SecurityError(
                    "is signed with a key that is not trusted", where=where, remedy=_ASK
                )
            key = found
            signatory = Signatory(f"key {envelope.hint[:16]}", envelope.hint)
        message = encode_for_signing(envelope.payload, envelope.payload_type)
        if not is_signature(key, envelope.signature, message):
            raise SecurityError("its signature is wrong", where=where, remedy=AGAIN)
        return signatory

    def _key_of_chain(
        self, encoded: tuple[bytes, ...], where: str, at: datetime | None
    ) -> tuple[PublicKey, Signatory]:
        try:
            chain = [x509.load_der_x509_certificate(one) for one in encoded]
            key = chain[0].public_key()
            at = at or chain[0].not_valid_before_utc
            if self.site is not None and _names_site(chain, self.site.root):
                return self._key_of_member(chain, at)
            refusal = self._refusal(chain, at)
            names = chain[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
            name = str(names[0].value) if names else chain[0].subject.rfc4514_string()
        except SecurityError as error:
            raise error.replace(where=f"{where}: {error.where}") from error
        except Exception as error:  # the library has a dozen for certificates of strangers
            raise SecurityError("its certificates are malformed", where=where, remedy=AGAIN) from (
                error
            )
        if refusal:
            raise SecurityError(refusal, where=where, remedy=_ASK)
        if not is_supported(key):
            raise SecurityError("this kind of key does not sign here", where=where, remedy=AGAIN)
        assert isinstance(key, PublicKey)
        return key, Signatory(name, chain[0].fingerprint(hashes.SHA256()).hex())

    def _key_of_member(
        self, chain: list[x509.Certificate], at: datetime
    ) -> tuple[PublicKey, Signatory]:
        """As `_key_of_chain`, of somebody in the site."""
        assert self.site is not None
        if chain[-1] == self.site.root and len(chain) > 1:
            chain = chain[:-1]  # model-signing puts it there
        name = check_path(chain, self.site.root, "sign", at)
        self.site.revocations.check(tuple(chain), now())
        key = chain[0].public_key()
        assert isinstance(key, PublicKey)  # check_path knows no other one that signs
        return key, Signatory(str(name), chain[0].fingerprint(hashes.SHA256()).hex())

    def _refusal(self, chain: list[x509.Certificate], at: datetime) -> str:
        """Why a chain, leaf first, does not lead to a root at a time; empty if it does.

        Every certificate in it has to be part of the way: others would be covered by nothing. So
        a root at its end is accepted if it is one of ours, bit for bit.
        """
        if chain[-1] in self.roots and len(chain) > 1:
            chain = chain[:-1]
        root = next((one for one in self.roots if _issued(chain[-1], one)), None)
        if root is None or any(not _issued(*pair) for pair in pairwise(chain)):
            return "its certificates do not lead to a root that is trusted"
        whole = [*chain, root]
        if any(not one.not_valid_before_utc <= at <= one.not_valid_after_utc for one in whole):
            return "a certificate was not valid when it was signed"
        if any((one.issuer, one.serial_number) in self.revoked for one in chain):
            return "a certificate was revoked"
        for below, authority in enumerate(whole[1:]):  # authorities between it and the signer
            limits = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
            usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
            too_long = limits.path_length is not None and below > limits.path_length
            if not limits.ca or not usage.key_cert_sign or too_long:
                return "a certificate in its chain is not that of an authority"
        for one in whole:
            if any(e.critical and not isinstance(e.value, _KNOWN) for e in one.extensions):
                return "a certificate has critical extensions that are not known here"
        own = chain[0].extensions.get_extension_for_class(x509.KeyUsage).value
        return "" if own.digital_signature else "its certificate is not one for signing"


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def _names_site(chain: list[x509.Certificate], root: x509.Certificate) -> bool:
    """Whether a chain says to lead to the site's root; whether it does is another question."""
    return chain[-1].issuer == root.subject


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _revoked(
    path: Path, crl: x509.CertificateRevocationList, roots: list[x509.Certificate]
) -> list[tuple[x509.Name, int]]:
    """The entries of a list that one of the roots has signed."""
    issuers = [one for one in roots if one.subject == crl.issuer]
    if not any(crl.is_signature_valid(one.public_key()) for one in issuers):  # type: ignore[arg-type]
        raise SecurityError(
            "no trusted root has signed this revocation list",
            where=str(path),
            remedy="name the root's certificate before it, or get the list again",
        )
    return [(crl.issuer, entry.serial_number) for entry in crl]
