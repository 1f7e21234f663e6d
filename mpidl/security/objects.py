"""Names of data sets and models in a policy, and patterns of them, without tricks of paths.

A data set is the absolute path of its folder, its links resolved (`data_object`); a model is its
name. In a pattern `*` stands for any letters but '/', and `**` alone between two '/' for any number
of folders, also none.
"""

from __future__ import annotations

import fnmatch
import unicodedata
from pathlib import Path

from mpidl.errors import ConfigError, SecurityError
from mpidl.files import read_error

LONGEST = 1024
MOST_PARTS = 64
_SPECIAL = set("*?[]\\")


def check_object(name: str) -> str:
    """An object's name, if it has one spelling only.

    Raises:
        SecurityError: It has parts such as "..", or signs that are no letters.
    """
    if not _is_plain(name) or _SPECIAL & set(name):
        raise SecurityError(
            f"{name[:100]!r} is no name of a data set or a model",
            where="policy",
            remedy="name it without '..', '//', '*', backslashes and control characters",
        )
    return name


def check_pattern(pattern: str, where: str) -> str:
    """A pattern, if it has one spelling only.

    Raises:
        ConfigError: It has not.
    """
    parts = pattern.split("/")
    stars = any("**" in part and part != "**" for part in parts) or "**/**" in pattern
    if not _is_plain(pattern) or (_SPECIAL - {"*"}) & set(pattern) or stars:
        raise ConfigError(
            f"{pattern[:100]!r} is no pattern of data sets or models",
            where=where,
            remedy="write '*' for any letters and '/**' for all folders below; no '..', '//', "
            "'?', '[', backslashes and control characters",
        )
    return pattern


def _is_plain(text: str) -> bool:
    """Whether a name or pattern has no other spelling."""
    parts = text.removeprefix("/").split("/")
    return (
        0 < len(text) <= LONGEST
        and len(parts) <= MOST_PARTS
        and text.isprintable()
        and text == unicodedata.normalize("NFC", text)
        and not any(part in ("", ".", "..") or part != part.strip() for part in parts)
    )


def matches(pattern: str, name: str) -> bool:
    """Whether a checked name is among those of a checked pattern."""
    parts = name.split("/")
    # reached[n]: the pattern's parts so far match the first n parts of the name
    reached = [True] + [False] * len(parts)
    for want in pattern.split("/"):
        if want == "**":
            first = reached.index(True) if True in reached else len(reached)
            reached = [first <= count for count in range(len(reached))]
        else:
            reached = [False] + [
                before and _is_like(part, want)
                for before, part in zip(reached, parts, strict=False)
            ]
    return reached[-1]


def _is_like(part: str, want: str) -> bool:
    """Whether one part of a name matches; the part before a leading '/' is empty, and only that."""
    return bool(part) == bool(want) and fnmatch.fnmatchcase(part, want)


def data_object(folder: Path) -> str:
    """The name of a data set: the path of its folder, with links resolved.

    Raises:
        SecurityError: The path cannot be a name.
        DataError: There is no such folder.
    """
    try:
        return check_object(str(folder.resolve(strict=True)))
    except OSError as error:
        raise read_error(error, folder) from error
