"""What the commands of sealing share: the files below paths, divided among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mpidl.comm.context import init
from mpidl.errors import DataError
from mpidl.security.sealing import JOURNAL

Done = bool | str | tuple[str, ...]  # what became of a file


def each_file(
    doing: str,
    paths: Sequence[Path],
    out: Path | None,
    action: Callable[[Path, Path], Done],
    *,
    quiet: bool,
) -> list[tuple[Path, Done]]:
    """Do something with each file. Collective.

    Args:
        doing: The activity, for messages.
        paths: Files, or folders of which all files are meant, without links, hidden ones, and what
            is being written.
        out: Folder of the results, which has the same folders below; None: each file's own place.
        action: Called with a file and the place of its result, on one rank.
        quiet: Print nothing.

    Returns:
        The files of all ranks, and what became of them.

    Raises:
        MpidlError: On all ranks: one failed.
    """
    context = init()
    files = context.on_root(
        lambda: [(str(path), str(below)) for path, below in _files(paths)],
        "looking for files",
        list[tuple[str, str]],
    )
    done = []
    with context.fail_together(doing):
        for name, below in files[context.rank :: context.size]:
            path = Path(name)
            target = path if out is None else out / below
            target.parent.mkdir(parents=True, exist_ok=True)
            done.append((name, action(path, target)))
    parts = context.allgather_object(done, list[tuple[str, Done]])
    every = sorted((Path(name), result) for part in parts for name, result in part)
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
                unfinished = file.suffix in (JOURNAL, ".partial")
                if file.is_file() and not (file.is_symlink() or hidden or unfinished):
                    yield file, below
        elif path.is_file():
            yield path, Path(path.name)
        else:
            raise DataError("the file does not exist", where=str(path), remedy="check the path")
