"""Files of keys, in the layout of identities.

`KEYS`/NAME/sealing.pem is a person's or service's X25519 key, sealing-certificate.pem what others
need to seal for it, and retired/*.pem are its keys of before. `KEYS`/sealed-generations keeps which
changes of recipients this user has made.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.errors import SecurityError
from mpidl.extras import load_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.x509 import Certificate

PRIVATE, CERTIFICATE, RETIRED = "sealing.pem", "sealing-certificate.pem", "retired"
GENERATIONS = "sealed-generations"
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
        DataError: It cannot be read.
    """
    kind = crypto("asymmetric.x25519").X25519PrivateKey
    from mpidl.security import keystore

    key = keystore.load_key(path)
    if not isinstance(key, kind):
        raise SecurityError(
            "is not an X25519 key", where=str(path), remedy="issue the identity anew"
        )
    found: X25519PrivateKey = key
    return found


def load_public(path: Path) -> X25519PublicKey:
    """The key of a sealing certificate, which is not validated.

    Raises:
        SecurityError: It is none, or others can change it.
        DataError: It cannot be read.
    """
    crypto("serialization")
    from mpidl.security import identity

    return public_key(identity.load_certificates(path)[0], path)


def public_key(certificate: Certificate, where: Path) -> X25519PublicKey:
    """The key of a sealing certificate.

    Raises:
        SecurityError: It has another kind of key.
    """
    key = certificate.public_key()
    if not isinstance(key, crypto("asymmetric.x25519").X25519PublicKey):
        raise SecurityError(
            "is not the certificate of an X25519 key",
            where=str(where),
            remedy="name a valid sealing-certificate.pem",
        )
    found: X25519PublicKey = key
    return found


def load_recipient(name: str, folder: Path) -> tuple[str, X25519PublicKey]:
    """Name and key of somebody to seal for.

    Where there is a site (root.pem below MPIDL_SITE), it must know the certificate.

    Args:
        name: Of an identity below `folder` or in the site, or the path of a certificate (with a /
            or ending in .pem).
        folder: Of identities.

    Raises:
        SecurityError: There is no such certificate, or it is not valid now.
        DataError: It cannot be read.
    """
    crypto("serialization")
    from mpidl.security import identity, keystore

    is_path = "/" in name or name.endswith(".pem")
    path = Path(name) if is_path else folder / name / CERTIFICATE
    known = is_path or path.exists()
    chain = identity.load_certificates(path) if known else identity.load_published(name)
    if (keystore.site_folder() / "root.pem").exists():
        found = identity.Trust.load().verify(chain, "seal").name
    else:
        found = _check_alone(chain[0], path)
    if not is_path and found != name:
        raise SecurityError(f"is of {found}, not of {name}", where=str(path), remedy="look")
    return found, public_key(chain[0], path)


def _check_alone(certificate: Certificate, path: Path) -> str:
    """The name of a certificate that is valid now, for users without a site."""
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        remedy = "name a valid sealing-certificate.pem"
        raise SecurityError("is not valid now", where=str(path), remedy=remedy)
    common = load_extra("cryptography.x509", ACTIVITY).NameOID.COMMON_NAME
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(common)]
    return names[0] if names else path.parent.name


def read_generations(folder: Path) -> dict[str, int]:
    """The newest change of recipients by file, as far as this user has made it.

    Raises:
        SecurityError: The notes are not what `append_generation` wrote.
    """
    path, found = folder / GENERATIONS, dict[str, int]()
    if not path.exists():
        return found
    crypto("serialization")
    from mpidl.security import keystore

    for line in keystore.read_private(path, MOST_NOTES).splitlines():
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
