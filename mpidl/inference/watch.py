"""Scores files as an instrument writes them into a folder, each once, until told to stop.

Rank 0 looks into the folder; all ranks predict one file after the other. `predictions.jsonl` in the
folder of the results has a line for each file, so that a later job goes on where this one ended.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from mpidl.comm.context import Context
from mpidl.data.shard_file import Stamp
from mpidl.errors import ConfigError, DataError, MpidlError, UnreadableError
from mpidl.files import partial_path, reading, writing
from mpidl.inference.job import Job, hdf5_beside
from mpidl.inference.sharded import Result
from mpidl.inference.store import OtherPrediction
from mpidl.train.signals import StopRequest

STOP = "STOP"  # a file of this name ends the watch
REPORT = "predictions.jsonl"
MARK = ".predictions"  # in the names of results: scan.npz.predictions.h5
UNFINISHED = (".partial", ".part", ".tmp", ".temp", ".swp")
TRIES = 3  # for a file that cannot be read now
POLL_SECONDS = 0.5
LINE_BYTES = 1 << 16  # of the report; a longer line is none of ours


class Record(msgspec.Struct, frozen=True):
    """A line of the report.

    Attributes:
        file: Name of the file.
        bytes: Its size.
        mtime_ns: When it was modified, in nanoseconds since 1970.
        status: What became of it.
        out: Name of the result.
        samples: In it.
        error: Why it could not be scored.
    """

    file: str
    bytes: int
    mtime_ns: int
    status: Literal["done", "failed"]
    out: str = ""
    samples: int = 0
    error: str = ""

    @property
    def stamp(self) -> Stamp:
        """The state of the file that was scored."""
        return Stamp(self.bytes, self.mtime_ns)


@dataclass(frozen=True)
class Ready:
    """A complete file.

    Attributes:
        path: Where it is.
        stamp: Its state.
    """

    path: Path
    stamp: Stamp


class Inbox:
    """The folder of an instrument, as rank 0 sees it.

    A file is complete when size and time have not changed for `settle` seconds by our own clock:
    the clocks of file servers differ. Hidden files and those with the suffix of an unfinished one
    are left alone until they are renamed. A file that changes after it was scored is a new one.

    Args:
        folder: Where files arrive.
        out: Folder of results and report; may be the same.
        pattern: Of the names of files, as of a shell.
        settle: Seconds without a change.
        clock: Seconds from any beginning.

    Raises:
        ConfigError: There is no such folder.
        DataError: The report cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        *,
        pattern: str = "*",
        settle: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for path in {folder, out}:
            if not path.is_dir():
                raise ConfigError("is no folder", where=str(path), remedy="make the folder first")
        self.folder = folder
        self.report = out / REPORT
        self._pattern = pattern
        self._settle = settle
        self._clock = clock
        self._seen: dict[str, tuple[Stamp, float]] = {}  # name -> its state, and since when
        self._known = {record.file: record.stamp for record in read_report(self.report)}

    @property
    def told_to_stop(self) -> bool:
        """Whether there is a file STOP."""
        return (self.folder / STOP).exists()

    def ready(self) -> list[Ready]:
        """Complete files that were not scored, the oldest first.

        Raises:
            UnreadableError: The folder is out of reach now.
        """
        now = self._clock()
        present: dict[str, tuple[Stamp, float]] = {}
        with reading(self.folder):
            for path in self.folder.iterdir():
                with suppress(FileNotFoundError):  # taken away meanwhile
                    if not self._is_input(path):
                        continue
                    stamp = Stamp.of(path)
                    before = self._seen.get(path.name)
                    same = before is not None and before[0] == stamp
                    present[path.name] = stamp, before[1] if before and same else now
        self._seen = present
        found = [
            Ready(self.folder / name, stamp)
            for name, (stamp, since) in present.items()
            if now - since >= self._settle and self._known.get(name) != stamp
        ]
        return sorted(found, key=lambda one: (one.stamp.mtime_ns, one.path.name))

    def _is_input(self, path: Path) -> bool:
        name = path.name
        ours = name in (STOP, REPORT) or f"{MARK}." in name
        hidden = name.startswith(".") or name.endswith((*UNFINISHED, "~"))
        matches = fnmatch.fnmatchcase(name, self._pattern)
        return matches and not ours and not hidden and path.is_file()

    def record(self, record: Record) -> None:
        """Add a line to the report: this file is not looked at again while it is the same.

        Raises:
            DataError: The report cannot be written.
        """
        self._known[record.file] = record.stamp
        with writing(self.report), open(self.report, "ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")


def read_report(path: Path) -> list[Record]:
    """The lines of a report; one that is none, as after a crash, is left out.

    Raises:
        UnreadableError: It is out of reach now.
    """
    found: list[Record] = []
    if not path.exists():
        return found
    with reading(path), open(path, "rb") as file:
        while line := file.readline(LINE_BYTES):
            with suppress(msgspec.MsgspecError, RecursionError):
                found.append(msgspec.json.decode(line, type=Record))
    return found


class Watch:
    """Scores the files of a folder with all ranks. Collective.

    Args:
        job: The model.
        inbox: The folder; None but on rank 0.
        out: Folder of the results.
        suffix: Of the results.
        say: Told what happens, on rank 0.
    """

    def __init__(
        self, job: Job, inbox: Inbox | None, out: Path, suffix: str, say: Callable[[str], None]
    ) -> None:
        self.job = job
        self.context: Context = job.context
        self.done = self.failed = 0
        self._inbox = inbox
        self._out = out
        self._suffix = suffix
        self._say = say
        self._tries: dict[Ready, int] = {}

    def run(self, stop: StopRequest) -> bool:
        """Until a signal arrives on any rank, or there is a file STOP.

        Returns:
            Whether a file was left unfinished; the next job goes on with it.
        """
        while not self._stops(stop):
            ready = self.context.on_root(self._look, "looking for files", list[Ready])
            for one in ready:
                result = self._score(one, stop)
                if result is not None and not result.complete:
                    return True
                if self._stops(stop):
                    break
            if not ready:
                time.sleep(POLL_SECONDS)  # on all ranks: waiting in MPI would take their cores
        return False

    def _look(self) -> list[Ready]:
        return self._inbox.ready() if self._inbox else []

    def _stops(self, stop: StopRequest) -> bool:
        told = self._inbox is not None and self._inbox.told_to_stop
        return any(self.context.allgather_object(told or stop.stop_requested, bool))

    def _score(self, one: Ready, stop: StopRequest) -> Result | None:
        """Predict one file; a bad one is recorded and does not end the watch."""
        out = self._out / f"{one.path.name}{MARK}{self._suffix}"
        try:
            try:
                result = self.job.run([one.path], out, stop).result
            except OtherPrediction:  # the file has changed after an interruption
                result = self.job.run([one.path], out, stop, restart=True).result
        except (DataError, ConfigError) as error:
            if not error.agreed or str(out) in error.where:
                raise  # not the fault of this file: the results cannot be written
            self._fail(one, out, error)
            return None
        if result.complete:
            self.done += 1
            self._record(one, "done", out=out.name, samples=result.samples)
            self._say(f"{one.path.name}: {result.samples:,} samples, {out.name}")
        return result

    def _fail(self, one: Ready, out: Path, error: MpidlError) -> None:
        self._tries[one] = self._tries.get(one, 0) + 1
        if isinstance(error, UnreadableError) and self._tries[one] < TRIES:
            time.sleep(POLL_SECONDS)
            return
        self.failed += 1
        del self._tries[one]
        partial = partial_path(hdf5_beside(out))
        self.context.on_root(lambda: partial.unlink(missing_ok=True), f"removing {partial}")
        self._record(one, "failed", error=str(error))
        self._say(f"{one.path.name}: {error}")

    def _record(
        self,
        one: Ready,
        status: Literal["done", "failed"],
        *,
        out: str = "",
        samples: int = 0,
        error: str = "",
    ) -> None:
        stamp, text = one.stamp, error[:2000]
        record = Record(one.path.name, stamp.bytes, stamp.mtime_ns, status, out, samples, text)
        inbox = self._inbox
        self.context.on_root(
            lambda: None if inbox is None else inbox.record(record), "writing the report"
        )
