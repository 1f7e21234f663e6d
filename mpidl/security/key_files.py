"""Files of keys, in the layout of identities.

`KEYS`/NAME/sealing.pem is a person's or service's X25519 key, sealing-certificate.pem what others
need to seal for it, and retired/*.pem are its keys of before. `KEYS`/sealed-generations keeps which
changes of recipients this user has made.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl import settings
from mpidl.errors import SecurityError
from mpidl.extras import load_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.x509 import Certificate

PRIVATE, CERTIFICATE, RETIRED = "sealing.pem", "sealing-certificate.pem", "retired"
GENERATIONS = "sealed-generations"
MOST_BYTES = 1 << 16  # of a key or a certificate
MOST_NOTES = 64 << 20  # bytes of the file of generations
ACTIVITY = "sealed files"
_NOTE = re.compile(rb"([0-9a-f]{64}) ([1-9][0-9]{0,15})")


def crypto(module: str) -> Any:
    """A module of `cryptography`, below its `hazmat.primitives`."""
    return load_extra(f"cryptography.hazmat.primitives.{module}", ACTIVITY)


def load_private(path: Path) -> X25519PrivateKey:
    """The X25519 key of a PEM file.

    Raises:
        SecurityError: Others can read it, or it is none, or its passphrase is wrong.
    """
    content = read_secret(path)
    serialization, x25519 = crypto("serialization"), crypto("asymmetric.x25519")
    encrypted = b"ENCRYPTED" in content
    try:
        key = serialization.load_pem_private_key(content, passphrase() if encrypted else None)
    except (ValueError, TypeError) as error:
        raise SecurityError(
            "cannot be read: it is no key, or the passphrase is wrong",
            where=str(path),
            remedy="check MPIDL_PASSPHRASE_FILE",
        ) from error
    if not isinstance(key, x25519.X25519PrivateKey):
        raise SecurityError(
            "is not an X25519 key", where=str(path), remedy="issue the identity anew"
        )
    found: X25519PrivateKey = key
    return found


def passphrase() -> bytes | None:
    """That of MPIDL_PASSPHRASE_FILE."""
    name = settings.PASSPHRASE_FILE.value
    return read_secret(Path(name).expanduser()).rstrip(b"\r\n") if name else None


def read_secret(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file that only its owner can read, of at most `most` bytes.

    Raises:
        SecurityError: Others can, or it is no plain file of this user.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SecurityError(
            f"cannot be read: {error.strerror}", where=str(path), remedy="check path and owner"
        ) from error
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        private = stat.S_ISREG(found.st_mode) and found.st_mode & 0o077 == 0
        if not private or found.st_uid not in (os.geteuid(), 0):
            raise SecurityError(
                "can be read by others, or is not a plain file of yours",
                where=str(path),
                remedy=f"chmod 600 {path}; if others could read it, rotate the key",
            )
        content = file.read(most + 1)
    if len(content) > most:
        raise SecurityError("is too large", where=str(path), remedy="check the path")
    return content


def load_public(path: Path) -> tuple[Certificate, X25519PublicKey]:
    """A sealing certificate and its key.

    Raises:
        SecurityError: It cannot be read, or is none.
    """
    x509 = load_extra("cryptography.x509", ACTIVITY)
    unknown = load_extra("cryptography.exceptions", ACTIVITY).UnsupportedAlgorithm
    try:
        with path.open("rb") as file:
            certificate = x509.load_pem_x509_certificate(file.read(MOST_BYTES))
        public = certificate.public_key()
    except OSError as error:
        raise SecurityError(
            f"the certificate of the recipient cannot be read: {error.strerror}",
            where=str(path),
            remedy="name an identity below MPIDL_KEYS, or the path of a sealing-certificate.pem",
        ) from error
    except (ValueError, unknown) as error:
        raise no_certificate(path, "is no certificate") from error
    if not isinstance(public, crypto("asymmetric.x25519").X25519PublicKey):
        raise no_certificate(path, "is not the certificate of an X25519 key")
    return certificate, public


def no_certificate(path: Path, what: str) -> SecurityError:
    """The error for a certificate that cannot be used."""
    return SecurityError(what, where=str(path), remedy="name a valid sealing-certificate.pem")


def read_generations(folder: Path) -> dict[str, int]:
    """The newest change of recipients by file, as far as this user has made it.

    Raises:
        SecurityError: The notes are not what `append_generation` wrote.
    """
    path, found = folder / GENERATIONS, dict[str, int]()
    if not path.exists():
        return found
    for line in read_secret(path, MOST_NOTES).splitlines():
        match = _NOTE.fullmatch(line)
        if match is None:
            raise SecurityError("is damaged", where=str(path), remedy="restore it from a backup")
        identity = match[1].decode()
        found[identity] = max(found.get(identity, 0), int(match[2]))
    return found


def append_generation(folder: Path, identity: str, generation: int) -> None:
    """Keep a change of recipients; one short write, so that several may write at once.

    Raises:
        OSError: It cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(folder / GENERATIONS, flags, 0o600)
    try:
        os.write(handle, f"{identity} {generation}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)
