"""Signs files and folders, and verifies signatures before anything that they cover is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpidl.errors import SecurityError
from mpidl.files import reading, write_file
from mpidl.security import statement
from mpidl.security.envelope import IN_TOTO, MOST_BYTES, Envelope
from mpidl.security.signer import Signer
from mpidl.security.statement import Statement, signature_path
from mpidl.security.trusted import Signatory, Trusted


@dataclass(frozen=True)
class Verified:
    """A signature that holds.

    Attributes:
        signatory: Who has signed.
        statement: What.
    """

    signatory: Signatory
    statement: Statement


def sign(path: Path, signer: Signer, signature: Path | None = None) -> Path:
    """Sign a file or a folder.

    Args:
        path: The file or the folder.
        signer: Who signs.
        signature: The file to write; None: `signature_path`.

    Returns:
        The file of the signature.

    Raises:
        SecurityError: It holds links or special files, or nothing.
        DataError: A file cannot be read.
    """
    target = signature or signature_path(path)
    payload = statement.describe(path, signature=target)
    write_file(target, signer.sign(payload, IN_TOTO).encode() + b"\n")
    return target


def read_signature(path: Path, trusted: Trusted, signature: Path | None = None) -> Verified:
    """The signature of a file or a folder, verified; its files are not looked at.

    Args:
        path: The file or the folder.
        trusted: Whom signatures are accepted from.
        signature: Its file; None: `signature_path`.

    Raises:
        SecurityError: There is none, or it does not hold.
    """
    source = signature or signature_path(path)
    if not source.is_file():
        raise SecurityError(
            f"is not signed: there is no {source.name}",
            where=str(path),
            remedy="have it signed by somebody who is trusted (mpidl sign)",
        )
    with reading(source), open(source, "rb") as file:
        raw = file.read(MOST_BYTES + 1)
    envelope = Envelope.decode(raw.removesuffix(b"\n"), str(source))
    signatory = trusted.verify(envelope, IN_TOTO, str(source))
    return Verified(signatory, statement.parse(envelope.payload, str(source)))


def verify(path: Path, trusted: Trusted, signature: Path | None = None) -> Verified:
    """Refuse a file or a folder that is not, byte for byte, what somebody trusted has signed.

    Args:
        path: The file or the folder.
        trusted: Whom signatures are accepted from.
        signature: Its file; None: `signature_path`.

    Raises:
        SecurityError: It is not.
        DataError: A file cannot be read.
    """
    found = read_signature(path, trusted, signature)
    statement.compare(path, found.statement)
    return found


@contextmanager
def admitted(path: Path, trusted: Trusted | None) -> Iterator[None]:
    """A block that may use a file, which is verified before, and must not change meanwhile.

    Args:
        path: The file.
        trusted: Whom signatures are accepted from; None: it need not be signed.

    Raises:
        SecurityError: It is not signed by anybody trusted, or has changed in the block.
    """
    if trusted is None:
        yield
        return
    before = _state(path)
    verify(path, trusted)
    yield
    if _state(path) != before:
        raise SecurityError(
            "was replaced or changed while it was read",
            where=str(path),
            remedy="let no program write to it, then start again",
        )


def _state(path: Path) -> tuple[int, ...]:
    """What tells one state of a file from another; the kernel alone sets the time of change."""
    with reading(path):
        found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
