"""What the commands of sealing share: the files below paths, divided among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mpidl.comm.context import init
from mpidl.errors import DataError

T = TypeVar("T")


def each_file(
    doing: str,
    paths: Sequence[Path],
    out: Path | None,
    action: Callable[[Path, Path], T],
    *,
    quiet: bool,
) -> list[tuple[Path, T]]:
    """Do something with each file. Collective.

    Args:
        doing: The activity, for messages.
        paths: Files, or folders of which all files are meant, without links and hidden ones.
        out: Folder of the results, which has the same folders below; None: each file's own place.
        action: Called with a file and the place of its result, on one rank.
        quiet: Print nothing.

    Returns:
        The files of all ranks, and what became of them.

    Raises:
        MpidlError: On all ranks: one failed.
    """
    context = init()
    files = context.on_root(lambda: [*_files(paths)], "looking for files", list[tuple[Path, Path]])
    done = []
    with context.fail_together(doing):
        for path, below in files[context.rank :: context.size]:
            target = path if out is None else out / below
            target.parent.mkdir(parents=True, exist_ok=True)
            done.append((path, action(path, target)))
    parts = context.allgather_object(done, list[tuple[Path, Any]])
    every = sorted(item for part in parts for item in part)
    for path, result in every:
        if result and context.is_root and not quiet:
            print(path if result is True else f"{path}: {result}")
    return every


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Each file, and its place below the folder that was named."""
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                below = file.relative_to(path)
                hidden = any(part.startswith(".") for part in below.parts)
                if file.is_file() and not file.is_symlink() and not hidden:
                    yield file, below
        elif path.is_file():
            yield path, Path(path.name)
        else:
            raise DataError("the file does not exist", where=str(path), remedy="check the path")
