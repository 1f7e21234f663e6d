"""Keys of sealed files: who can open one, and the keys of this process."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl import settings
from mpidl.errors import SecurityError
from mpidl.extras import load_extra
from mpidl.files import read_error
from mpidl.security.key_files import (
    ACTIVITY,
    CERTIFICATE,
    PRIVATE,
    RETIRED,
    append_generation,
    crypto,
    load_private,
    load_public,
    no_certificate,
    read_generations,
)
from mpidl.security.sealed_format import MOST_RECIPIENTS, Header, Wrapped, damaged

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

MOST_IDENTITIES = 256
_INFO = b"mpidl sealed file 1 key-encryption key "


def _suite() -> Any:
    hpke = crypto("hpke")
    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


@dataclass(frozen=True)
class Recipient:
    """Who can open a sealed file.

    Attributes:
        name: For people.
        key: The X25519 public key, 32 bytes.
    """

    name: str
    key: bytes


@dataclass(frozen=True)
class Envelope:
    """A key-encryption key, wrapped for its recipients; one for all files of a writer.

    Attributes:
        key: 32 bytes.
        recipients: It, wrapped for each.
    """

    key: bytes
    recipients: tuple[Wrapped, ...]

    @staticmethod
    def make(recipients: Sequence[Recipient]) -> Envelope:
        """A new key for these recipients.

        Raises:
            SecurityError: There are none, too many, or one twice.
        """
        count = len({one.key for one in recipients})
        if not 0 < count <= MOST_RECIPIENTS or count < len(recipients):
            what = f"a file is sealed for 1 to {MOST_RECIPIENTS} different recipients, not for"
            raise SecurityError(f"{what} {len(recipients)}", remedy="name each once")
        key, suite = secrets.token_bytes(32), _suite()
        public = crypto("asymmetric.x25519").X25519PublicKey.from_public_bytes
        wrapped = tuple(
            Wrapped(one.name, one.key, suite.encrypt(key, public(one.key), info=_INFO + one.key))
            for one in recipients
        )
        _remember(wrapped[0].sealed, key)
        return Envelope(key, wrapped)

    def wrap(self, data_key: bytes) -> bytes:
        """A data key under this one."""
        wrapped: bytes = crypto("keywrap").aes_key_wrap(self.key, data_key)
        return wrapped

    def __repr__(self) -> str:
        return f"Envelope for {', '.join(one.name for one in self.recipients)}"


@dataclass(frozen=True, repr=False)
class FileKeys:
    """The keys of one file.

    Attributes:
        data: The data key, from which the others come.
        segments: Of the cipher.
        header: Of the header's HMAC.
    """

    data: bytes
    segments: bytes
    header: bytes

    @staticmethod
    def derive(data: bytes, header: Header) -> FileKeys:
        """The keys of a file from its data key; HKDF with SHA-256, RFC 5869."""
        hashes, hkdf = crypto("hashes"), crypto("kdf.hkdf")

        def derive(purpose: bytes) -> bytes:
            info = header.context + purpose
            made: bytes = hkdf.HKDF(hashes.SHA256(), 32, header.salt, info).derive(data)
            return made

        return FileKeys(data, derive(b"segments"), derive(b"header"))

    def mac(self, encoded: bytes) -> bytes:
        """The HMAC of an encoded header."""
        return hmac.digest(self.header, encoded, "sha256")


class Keyring:
    """The private keys of a folder of identities, or of one identity.

    Args:
        folder: With sealing.pem, or with folders that have one.

    Raises:
        SecurityError: A key can be read by others, or is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self._paths = {self._id(path): path for path in self._find()}
        self._keys: dict[bytes, X25519PrivateKey] = {}
        self._has_retired = False
        self._generations = read_generations(self.folder)

    def _find(self) -> Iterator[Path]:
        """The private keys there are."""
        if (self.folder / PRIVATE).exists():
            yield self.folder / PRIVATE
            return
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder))[:MOST_IDENTITIES]
        except FileNotFoundError:
            return
        except OSError as error:
            raise read_error(error, self.folder) from error
        for name in names:
            if (self.folder / name / PRIVATE).exists():
                yield self.folder / name / PRIVATE

    def _id(self, path: Path) -> bytes:
        """Which key a file has, by the certificate beside it: no passphrase is asked for."""
        certificate = path.with_name(CERTIFICATE)
        known = certificate.exists()
        public = load_public(certificate)[1] if known else load_private(path).public_key()
        return public.public_bytes_raw()

    def _add_retired(self) -> bool:
        """Know the keys of before too, for what is still sealed for them; True the first time."""
        if self._has_retired:
            return False
        self._has_retired = True
        for current in [*self._paths.values()]:
            for path in sorted((current.parent / RETIRED).glob("*.pem"))[:MOST_IDENTITIES]:
                public = load_private(path).public_key().public_bytes_raw()
                self._paths.setdefault(public, path)
        return True

    def _private(self, key: bytes) -> X25519PrivateKey:
        """The private key of an id that is in this ring."""
        if key not in self._keys:
            found = load_private(self._paths[key])
            if found.public_key().public_bytes_raw() != key:
                raise SecurityError(
                    "does not belong to the certificate beside it",
                    where=str(self._paths[key]),
                    remedy="issue the identity anew",
                )
            self._keys[key] = found
        return self._keys[key]

    def unwrap(self, header: Header, where: Any) -> FileKeys:
        """The keys of a file, by the first of its recipients that is in this ring.

        Raises:
            SecurityError: None is.
            DataError: The header is not what was sealed.
        """
        invalid = load_extra("cryptography.exceptions", ACTIVITY).InvalidTag
        keywrap = crypto("keywrap")
        try:
            data = keywrap.aes_key_unwrap(self._key_encryption_key(header, where), header.data_key)
        except (invalid, keywrap.InvalidUnwrap, ValueError) as error:
            raise damaged(where, "its header is damaged") from error
        return FileKeys.derive(data, header)

    def _key_encryption_key(self, header: Header, where: Any) -> bytes:
        for one in header.recipients:
            if one.sealed in _known:
                return _known[one.sealed]
        own = [one for one in header.recipients if one.key in self._paths]
        if not own and self._add_retired():
            own = [one for one in header.recipients if one.key in self._paths]
        if not own:
            names = ", ".join(one.name for one in header.recipients)
            raise SecurityError(
                f"is sealed for {names}, and the key of none of them is in {self.folder}",
                where=str(where),
                remedy="name the folder of your keys by MPIDL_KEYS or security.key_folder, or have "
                "the file re-wrapped: mpidl rewrap --add",
            )
        private = self._private(own[0].key)
        key: bytes = _suite().decrypt(own[0].sealed, private, info=_INFO + own[0].key)
        _remember(own[0].sealed, key)
        return key

    def check_generation(self, header: Header, where: Any) -> None:
        """Refuse a header from before a change of recipients that this user has made.

        Raises:
            SecurityError: It is.
        """
        known = self._generations.get(header.identity.hex(), 0)
        if header.generation < known:
            raise SecurityError(
                f"its recipients are those of change {header.generation - 1}, and you have made "
                f"change {known - 1}: an earlier header was put back",
                where=str(where),
                remedy="find out who did; re-wrap the file anew, with --new-key",
            )

    def remember_generation(self, header: Header) -> None:
        """Keep that this user has changed the recipients of a file."""
        self._generations[header.identity.hex()] = header.generation
        append_generation(self.folder, header.identity.hex(), header.generation)

    def __repr__(self) -> str:
        return f"Keyring of {len(self._paths)} key(s) in {self.folder}"


_chosen: list[Path] = []
_known: dict[bytes, bytes] = {}  # wrapped key-encryption keys -> those of this process


def _remember(wrapped: bytes, key: bytes) -> None:
    """Keep a key-encryption key: it opens many files, and what this process has sealed."""
    while len(_known) >= MOST_IDENTITIES:
        del _known[next(iter(_known))]
    _known[wrapped] = key


def use(folder: Path | str) -> None:
    """Open sealed files with the keys of this folder from now on, see `security.key_folder`."""
    _chosen[:] = [Path(folder)]


def keyring() -> Keyring:
    """The keys of this process: of `use`, or of MPIDL_KEYS."""
    return _ring(_chosen[0] if _chosen else Path(settings.KEYS.value))


@cache
def _ring(folder: Path) -> Keyring:
    return Keyring(folder)


def forget() -> None:
    """Drop the keys in memory; they are read anew when they are needed."""
    _chosen.clear()
    _known.clear()
    _ring.cache_clear()


def find_recipient(name: str) -> Recipient:
    """The recipient of a sealing certificate.

    Args:
        name: Of an identity in `KEYS`, or the path of a certificate (with a / or ending in .pem).

    Raises:
        SecurityError: There is none, or it is not valid now.
    """
    is_path = "/" in name or name.endswith(".pem")
    folder = _chosen[0] if _chosen else Path(settings.KEYS.value)
    path = Path(name) if is_path else folder.expanduser() / name / CERTIFICATE
    certificate, public = load_public(path)
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise no_certificate(path, "is not valid now")
    common = load_extra("cryptography.x509", ACTIVITY).NameOID.COMMON_NAME
    names = [one.value for one in certificate.subject.get_attributes_for_oid(common)]
    shown = _plain(str(names[0]) if names else path.parent.name)
    return Recipient(shown, public.public_bytes_raw())


def _plain(name: str) -> str:
    """A name with nothing but the letters that a header allows."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_.@+-") else "-" for c in name)
    return kept[:64] or "-"


def rewrapped(held: Sequence[Wrapped], add: Sequence[Recipient], remove: Sequence[str]) -> Envelope:
    """A new key for the recipients of a header, but for some names, and for more.

    Raises:
        SecurityError: A name is none of them, or nobody would be left.
    """
    unknown = set(remove) - {one.name for one in held}
    if unknown:
        raise SecurityError(
            f"is not sealed for {', '.join(sorted(unknown))}, but for "
            f"{', '.join(one.name for one in held)}",
            remedy="name one of them",
        )
    kept = [Recipient(one.name, one.key) for one in held if one.name not in remove]
    known = {one.key for one in kept}
    return Envelope.make([*kept, *(one for one in add if one.key not in known)])


def envelope_for(names: Sequence[str]) -> Envelope:
    """A new key for recipients, see `find_recipient`."""
    return Envelope.make([find_recipient(name) for name in names])
