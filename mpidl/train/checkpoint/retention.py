"""Which checkpoints a folder holds: finding, keeping and setting them aside."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mpidl.errors import CheckpointError, SecurityError
from mpidl.files import partial_path
from mpidl.security.statement import signature_path
from mpidl.train.checkpoint.format import BEST, Checkpoint, DamagedCheckpoint
from mpidl.train.checkpoint.reader import read, read_step

_NAME = re.compile(r"step-(\d{8,})\.h5")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.h5"


def step_in_name(path: Path | str) -> int:
    """The step of a checkpoint by its file name; -1 if that is not one."""
    match = _NAME.fullmatch(Path(path).name)
    return int(match.group(1)) if match else -1


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first; best.h5 is not among them.

    Raises:
        OSError: The folder cannot be read.
    """
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except FileNotFoundError:
        return []
    found = [name for name in names if _NAME.fullmatch(name)]
    return [folder / name for name in sorted(found, key=step_in_name, reverse=True)]


def find(path: Path) -> Path:
    """The checkpoint file that `path` means.

    Args:
        path: A checkpoint, or the output folder of a run: its best, else its latest checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    candidates = [folder / BEST, *list_checkpoints(folder)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        "no checkpoint found",
        where=str(path),
        remedy="name a .h5 checkpoint or the output folder of a run",
    )


def drop_old(folder: Path, keep: int) -> None:
    """Delete all checkpoints but the `keep` newest; best.h5 stays."""
    for old in list_checkpoints(folder)[keep:]:
        old.unlink(missing_ok=True)
        signature_path(old).unlink(missing_ok=True)


def link_best(path: Path) -> None:
    """Give a checkpoint the second name best.h5; a copy where the file system has no hard links."""
    name = path.with_name(BEST)
    partial = partial_path(name)
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:
        shutil.copyfile(path, partial)
    partial.replace(name)


def load_latest(
    folder: Path,
    warn: Callable[[str], None],
    admit: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
) -> Checkpoint:
    """The newest checkpoint that is intact, and that is let in.

    A damaged one is passed over, with a warning that says how many steps are lost; so is one that
    is not signed where it has to be, as a job leaves it that was killed before it could. One that
    cannot be read now (locked, no permission, an I/O error, a newer format) is not: an earlier one
    would silently throw work away.

    Args:
        folder: Of the checkpoints.
        warn: Told what is passed over.
        admit: A block in which a file may be read.

    Raises:
        CheckpointError: There is none, or one cannot be read now.
    """
    newest_damaged: Path | None = None
    foreign: SecurityError | None = None  # sealed for others: no reason to use an older one
    for path in list_checkpoints(folder):
        try:
            with admit(path):
                try:
                    found = read(path)
                except SecurityError as error:
                    foreign = error
                    raise
            if found.meta.step != step_in_name(path):  # a former state under a newer name
                what = f"is of step {found.meta.step}: it was renamed"
                raise DamagedCheckpoint(what, where=str(path), remedy="name it as it was")
        except (DamagedCheckpoint, SecurityError) as error:
            if error is foreign:
                raise
            warn(f"WARNING: passing over {error.where}: {error.what}")
            newest_damaged = newest_damaged or path
            continue
        if newest_damaged:
            lost = step_in_name(newest_damaged) - found.meta.step
            warn(
                f"WARNING: {lost} step(s) are lost: the newest intact checkpoint is that of step "
                f"{found.meta.step}"
            )
        return found
    raise CheckpointError(
        "no usable checkpoint found", where=str(folder), remedy="train without --resume"
    )


def set_aside_later(folder: Path, loaded: Path, step: int, warn: Callable[[str], None]) -> None:
    """Rename the checkpoints of later steps than the one that a run resumes from.

    They are damaged, or belong to another course of the run. Left in place they would count as the
    newest ones, and what this run writes would be deleted in their favor. So would a best.h5 of
    the other course: the next one, though worse, would replace it.

    Args:
        folder: Of the checkpoints.
        loaded: The file that the run resumes from.
        step: Its step.
        warn: Told of each renamed file.
    """
    later = [
        path for path in list_checkpoints(folder) if step_in_name(path) > step and path != loaded
    ]
    if folder / BEST != loaded and read_step(folder / BEST) > step:
        later.append(folder / BEST)
    for path in later:
        aside = path.with_name(path.name + ".superseded")
        number = 1
        while aside.exists():  # of a course before that one
            number += 1
            aside = path.with_name(f"{path.name}.superseded-{number}")
        path.replace(aside)
        if (signature := signature_path(path)).is_file():
            signature.replace(signature_path(aside))
        warn(f"keeping {path.name} as {aside.name}: the run resumes at step {step}")
