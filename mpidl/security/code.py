"""Which code runs: the version, a digest over all files of the package, the revision."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

import mpidl

_SUFFIXES = (".py", ".c", ".h", ".cu", ".cuh", ".toml", ".json", ".proto", ".binpb")


@cache
def code_digest() -> str:
    """SHA-256 over names and contents of the package's sources, in hexadecimal.

    What is compiled from them differs from machine to machine, and is left out.
    """
    root = Path(mpidl.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in _SUFFIXES and path.is_file() and "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return found.hexdigest()


def revision() -> str:
    """The git commit that the package is checked out at; empty: it is installed without git."""
    top = Path(mpidl.__file__).parent.parent
    try:
        git = top / ".git"
        if git.is_file():  # a worktree: "gitdir: PATH"
            git = top / git.read_text().partition(":")[2].strip()
        common = (
            git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
        )
        head = (git / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        if name != head:
            loose = common / name
            packed = common / "packed-refs"
            text = loose.read_text() if loose.is_file() else packed.read_text()
            lines = (
                [text] if loose.is_file() else [x for x in text.splitlines() if x.endswith(name)]
            )
            head = lines[0].split()[0] if lines else ""
    except (OSError, UnicodeDecodeError):
        return ""
    return head if re.fullmatch("[0-9a-f]{40,64}", head) else ""
