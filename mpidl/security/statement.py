"""What is signed of files: an in-toto statement with the predicate of model-signing v1.0.

A name and a digest for each file, and one digest over all of them, which is the subject.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from mpidl.errors import SecurityError
from mpidl.files import reading
from mpidl.security.envelope import AGAIN

STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://model_signing/signature/v1.0"
SIGNATURE, SUFFIX = "model.sig", ".sig"  # in a folder; behind the name of a file
GIT = (".git", ".gitattributes", ".github", ".gitignore")  # model-signing leaves them out too
PIECE = 4 << 20  # bytes hashed at a time
MOST_FILES = 1 << 20
Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64,128}$")]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]


class Resource(msgspec.Struct, frozen=True):
    """A file, or a range of its bytes: "NAME:START:END"."""

    name: Name
    algorithm: Annotated[str, Meta(max_length=64)]
    digest: Hex


class Serialization(msgspec.Struct, frozen=True, omit_defaults=True):
    """How files became resources.

    Attributes:
        method: One for each file ("."; for a file alone), or for each range of `shard_size` bytes.
        hash_type: Of the digests.
        allow_symlinks: Of the signer; links are refused here in any case.
        ignore_paths: Not signed; relative to the folder.
        shard_size: In bytes.
    """

    method: Literal["files", "shards"]
    hash_type: Literal["sha256", "blake2b"]
    allow_symlinks: bool
    ignore_paths: Annotated[tuple[Name, ...], Meta(max_length=1000)] = ()
    shard_size: Annotated[float, Meta(ge=1, le=1 << 50)] | None = None


class Predicate(msgspec.Struct, frozen=True):
    """The files."""

    serialization: Serialization
    resources: Annotated[tuple[Resource, ...], Meta(max_length=MOST_FILES)]


class Subject(msgspec.Struct, frozen=True):
    """What is signed: its name, for people, and the digest over all resources."""

    name: Name
    digest: dict[str, Hex]


class Statement(msgspec.Struct, frozen=True):
    """An in-toto statement."""

    kind: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: Annotated[tuple[Subject, ...], Meta(min_length=1, max_length=1)]
    predicateType: Literal["https://model_signing/signature/v1.0"]
    predicate: Predicate

    @property
    def digests(self) -> dict[str, str]:
        """Name -> digest."""
        return {one.name: one.digest for one in self.predicate.resources}


def signature_path(path: Path) -> Path:
    """Where the signature of a file or a folder lies."""
    return path / SIGNATURE if path.is_dir() else path.with_name(path.name + SUFFIX)


def describe(path: Path, *, signature: Path) -> bytes:
    """The statement over a file or a folder as it is now.

    Args:
        path: The file or the folder.
        signature: Where the signature will lie; it is not signed.

    Returns:
        JSON.

    Raises:
        SecurityError: It holds links or special files, or nothing.
        DataError: A file cannot be read.
    """
    ignored: tuple[str, ...] = ()
    if path.is_dir():
        own = os.path.relpath(signature, path)
        ignored = (*GIT, *([] if own.startswith("..") else [own]))
    how = Serialization("files", "sha256", False, ignored)
    resources = measure(path, how)
    if not resources:
        raise SecurityError("there is no file to sign", where=str(path), remedy="check the path")
    subject = Subject(path.resolve().name, {"sha256": _root_digest(resources)})
    return msgspec.json.encode(
        Statement(STATEMENT, (subject,), PREDICATE, Predicate(how, resources))
    )


def parse(payload: bytes, where: str) -> Statement:
    """The statement in a signed payload.

    Args:
        payload: JSON.
        where: The file, for messages.

    Raises:
        SecurityError: It is none, or its parts do not agree.
    """
    try:
        found = msgspec.json.decode(payload, type=Statement)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refuse("is no statement of model-signing v1.0", where) from error
    resources = found.predicate.resources
    if len(found.digests) != len(resources):
        raise _refuse("names a file twice", where)
    if found.subject[0].digest.get("sha256") != _root_digest(resources):
        raise _refuse("its digests do not agree", where)
    return found


def compare(path: Path, signed: Statement) -> None:
    """Refuse files that are not, one for one, what was signed.

    Args:
        path: The file or the folder.
        signed: What was.

    Raises:
        SecurityError: One has changed, is missing, or was added; the message names the first.
        DataError: One cannot be read.
    """
    now = {one.name: one.digest for one in measure(path, signed.predicate.serialization)}
    then = signed.digests
    if now == then:
        return
    name = min(name for name in {*now, *then} if now.get(name) != then.get(name))
    words = "has changed since it was signed"
    if name not in now:
        words = "was signed, and is missing now"
    elif name not in then:
        words = "was not there when the rest was signed"
    shown = path if name == "." else path / name
    raise SecurityError(words, where=str(shown), remedy=AGAIN)


def measure(path: Path, how: Serialization) -> tuple[Resource, ...]:
    """The resources of a file or a folder as it is now, in the order of their names."""
    files = sorted(_files(path, how.ignore_paths), key=lambda pair: pair[0].parts)
    if len(files) > MOST_FILES:
        remedy = "sign its folders one by one"
        raise SecurityError(f"holds more than {MOST_FILES:,} files", where=str(path), remedy=remedy)
    algorithm: str = how.hash_type
    tasks: list[tuple[str, Path, int, int]] = []
    for name, file in files:
        if how.method == "files":
            tasks.append((str(name), file, 0, -1))
            continue
        size = int(how.shard_size or 1)
        algorithm = f"{how.hash_type}-sharded-{size}"
        total = file.stat().st_size
        for start in range(0, total, size):
            stop = min(start + size, total)
            tasks.append((f"{name}:{start}:{stop}", file, start, stop))
    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:  # the GIL is released
        digests = list(pool.map(lambda task: _digest(how.hash_type, *task[1:]), tasks))
    return tuple(
        Resource(name, algorithm, digest) for (name, *_), digest in zip(tasks, digests, strict=True)
    )


def _files(path: Path, ignored: tuple[str, ...]) -> Iterator[tuple[PurePosixPath, Path]]:
    """Name and path of each file; links and special files are refused."""
    if path.is_file() and not path.is_symlink():
        yield PurePosixPath("."), path
        return
    if not path.is_dir():
        raise SecurityError(
            "is neither a file nor a folder", where=str(path), remedy="check the path"
        )
    skipped = [PurePosixPath(one) for one in ignored]
    for folder, folders, names in os.walk(path, onerror=_raise):
        here = Path(folder)
        for name in [*folders, *names]:
            file = here / name
            relative = PurePosixPath(file.relative_to(path))
            if any(relative.is_relative_to(one) for one in skipped):
                if name in folders:
                    folders.remove(name)
                continue
            if file.is_symlink() or not (file.is_dir() or file.is_file()):
                raise SecurityError(
                    "is a link or a special file, which nothing can be signed through",
                    where=str(file),
                    remedy="put the file itself there, or take it out of the folder",
                )
            if name in names:
                yield relative, file


def _raise(error: OSError) -> None:
    raise error


def _digest(algorithm: str, path: Path, start: int, stop: int) -> str:
    """Of bytes [start, stop) of a file, in hexadecimal; stop -1: to its end."""
    found = hashlib.new(algorithm)
    left: float = float("inf") if stop < 0 else stop - start
    with reading(path), open(path, "rb", buffering=0) as file:
        file.seek(start)
        buffer = memoryview(bytearray(int(min(PIECE, left)) or 1))
        while left > 0 and (count := file.readinto(buffer[: int(min(len(buffer), left))])):
            found.update(buffer[:count])
            left -= count
    return found.hexdigest()


def _root_digest(resources: tuple[Resource, ...]) -> str:
    found = hashlib.sha256()
    for one in resources:
        found.update(bytes.fromhex(one.digest))
    return found.hexdigest()


def _refuse(what: str, where: str) -> SecurityError:
    return SecurityError(what, where=where, remedy=AGAIN)
