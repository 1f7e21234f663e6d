"""Files of keys and certificates: who may read and write them, and private keys at rest.

A private key is refused if anybody but its owner could read or replace it; a certificate, a list or
a policy if anybody but its owner could replace it. Private keys are PKCS #8 in PEM, encrypted with
AES-256 and a key that scrypt makes of the passphrase (RFC 8018, RFC 7914), as
`openssl pkcs8 -topk8 -scrypt` writes them: `BestAvailableEncryption` of `cryptography` (version 50)
stretches a passphrase by 2048 rounds of PBKDF2 only.
"""

from __future__ import annotations

import base64
import errno
import getpass
import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7

from mpidl import settings
from mpidl.errors import SecurityError
from mpidl.files import publish, read_error
from mpidl.security.der import integer, tlv

PrivateKey = Ed25519PrivateKey | X25519PrivateKey | EllipticCurvePrivateKey

MOST_KEY_BYTES = 4096
MOST_PASSPHRASE = 1024
LEAST_PASSPHRASE = 12
# As strong as OWASP asks for, within the 32 MiB that OpenSSL allows
SCRYPT_COST, SCRYPT_BLOCK, SCRYPT_PARALLEL = 1 << 14, 8, 5
ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
OTHERS_READ = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def keys_folder() -> Path:
    """The folder of identities."""
    return Path(settings.KEYS.value).expanduser()


def site_folder() -> Path:
    """The public folder of the site."""
    return Path(settings.SITE.value).expanduser()


def read_private(path: Path, limit: int = MOST_KEY_BYTES) -> bytes:
    """The content of a file of this user that nobody else can read or replace, and that is no link.

    Args:
        path: The file.
        limit: Bytes that it has at most.

    Raises:
        SecurityError: Others could read or replace it, or it is not ours, or too large.
        DataError: It cannot be read.
    """
    return _read(path, limit, private=True)


def read_public(path: Path, limit: int) -> bytes:
    """The content of a file that nobody but its owner can change or replace, and that is no link.

    Raises:
        SecurityError: Others could change it, or it is too large.
        DataError: It cannot be read.
    """
    return _read(path, limit, private=False)


def _read(path: Path, limit: int, *, private: bool) -> bytes:
    try:
        folder = path.parent.stat()
        # a pipe in place of the file must not make us wait
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            _check_access(path, os.fstat(handle), folder, private)
            content = file.read(limit + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refuse(path, "is a symbolic link", "put the file itself there") from error
        raise read_error(error, path, "restore it from a backup") from error
    if len(content) > limit:
        raise _refuse(path, f"has more than {limit} bytes", "it is not what it should be: look")
    return content


def _check_access(path: Path, file: os.stat_result, folder: os.stat_result, private: bool) -> None:
    """Refuse a file that others can read (if private), change or replace."""
    trusted = {0, os.geteuid()} | (set() if private else {folder.st_uid})
    if not stat.S_ISREG(file.st_mode):
        raise _refuse(path, "is no regular file", "put the file itself there")
    if file.st_uid not in trusted or folder.st_uid not in trusted:
        raise _refuse(path, "it or its folder is of another user", "use your own, or chown it")
    if folder.st_mode & OTHERS_WRITE:
        remedy = f"chmod go-w {path.parent}"
        raise _refuse(path, "others can replace it: they can write to its folder", remedy)
    if file.st_mode & (OTHERS_READ if private else OTHERS_WRITE):
        verb, mode = ("read", "600") if private else ("change", "go-w")
        raise _refuse(path, f"others can {verb} it", f"chmod {mode} {path}; it may be known now")


def _refuse(path: Path, what: str, remedy: str) -> SecurityError:
    return SecurityError(what, where=str(path), remedy=remedy)


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Make a folder that others cannot write to, whatever the umask is, and those above it.

    Raises:
        OSError: The file system refuses.
    """
    if path.exists():
        return
    make_folder(path.parent, mode)
    path.mkdir(exist_ok=True)
    path.chmod(mode)


def write_private(path: Path, content: bytes) -> None:
    """Write a file as a whole, for its owner alone from the first byte on.

    Raises:
        OSError: The file system refuses.
    """
    _write(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """Write a file as a whole that others may read.

    Raises:
        OSError: The file system refuses.
    """
    _write(path, content, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            os.fchmod(handle, mode)
        publish(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def ask_passphrase(what: str, *, new: bool = False) -> bytes:
    """The passphrase of private keys: of the file that MPIDL_PASSPHRASE_FILE names, or typed in.

    Args:
        what: For which key, for the prompt.
        new: Whether it is chosen now.

    Raises:
        SecurityError: There is no file and nobody to ask; or a new one is too short.
    """
    file = settings.PASSPHRASE_FILE.value
    if file:
        found = read_private(Path(file), MOST_PASSPHRASE).rstrip(b"\r\n")
    elif sys.stdin is not None and sys.stdin.isatty():
        found = getpass.getpass(f"passphrase of {what}: ").encode()
        if new and getpass.getpass("the same again: ").encode() != found:
            raise SecurityError("the two differ", where="passphrase", remedy="start again")
    else:
        raise SecurityError(
            f"there is nobody to ask for the passphrase of {what}",
            where="passphrase",
            remedy="start it in a terminal, or set MPIDL_PASSPHRASE_FILE to a file of mode 0600",
        )
    if new and len(found) < LEAST_PASSPHRASE:
        raise SecurityError(
            f"has less than {LEAST_PASSPHRASE} characters",
            where="passphrase",
            remedy="choose a longer one: five words that do not belong together",
        )
    return found


def load_key(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """A private key from its file.

    Args:
        path: The file.
        passphrase: Of the key; asked for if the key is encrypted and there is none.

    Raises:
        SecurityError: The passphrase is wrong, the file is damaged, or others could read it.
        DataError: It cannot be read.
    """
    content = read_private(path)
    if not content.startswith(ENCRYPTED):
        passphrase = None
    elif passphrase is None:
        passphrase = ask_passphrase(str(path))
    try:
        key = serialization.load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm, MemoryError):
        key = None
    if not isinstance(key, PrivateKey):
        raise SecurityError(
            "the passphrase is wrong, or the file is damaged",
            where=str(path),
            remedy="type it again; a forgotten one cannot be found: 'mpidl keys issue' makes anew",
        )
    return key


def is_encrypted(path: Path) -> bool:
    """Whether a private key needs a passphrase.

    Raises:
        SecurityError: Others could read it.
        DataError: It cannot be read.
    """
    return read_private(path).startswith(ENCRYPTED)


def passphrase_of(path: Path, what: str) -> bytes | None:
    """The passphrase of a private key, asked for; None where the key is not encrypted.

    Args:
        path: Its file.
        what: Whose key it is, for the prompt.

    Raises:
        SecurityError: Others could read the key, or there is nobody to ask.
        DataError: It cannot be read.
    """
    return ask_passphrase(what) if is_encrypted(path) else None


def dump_key(key: PrivateKey, passphrase: bytes | None) -> bytes:
    """A private key as PKCS #8 in PEM; encrypted where there is a passphrase."""
    plain = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    if passphrase is None:
        return _pem("PRIVATE KEY", plain)
    salt, start = secrets.token_bytes(16), secrets.token_bytes(16)
    cost = {"n": SCRYPT_COST, "r": SCRYPT_BLOCK, "p": SCRYPT_PARALLEL}
    secret = Scrypt(salt=salt, length=32, **cost).derive(passphrase)
    padder, cipher = PKCS7(128).padder(), Cipher(algorithms.AES(secret), modes.CBC(start))
    encryptor = cipher.encryptor()
    box = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    numbers = b"".join(integer(number) for number in cost.values())
    derivation = tlv(0x30, _SCRYPT + tlv(0x30, tlv(4, salt) + numbers))
    scheme = tlv(0x30, _AES256_CBC + tlv(4, start))
    algorithm = tlv(0x30, _PBES2 + tlv(0x30, derivation + scheme))
    return _pem("ENCRYPTED PRIVATE KEY", tlv(0x30, algorithm + tlv(4, box)))


_PBES2 = tlv(6, bytes.fromhex("2a864886f70d01050d"))  # 1.2.840.113549.1.5.13
_SCRYPT = tlv(6, bytes.fromhex("2b06010401da47040b"))  # 1.3.6.1.4.1.11591.4.11
_AES256_CBC = tlv(6, bytes.fromhex("60864801650304012a"))  # 2.16.840.1.101.3.4.1.42


def _pem(label: str, content: bytes) -> bytes:
    text = base64.b64encode(content).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()
