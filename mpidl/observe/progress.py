"""Progress for people, on rank 0 and on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

LINE_SECONDS = 10.0


def find_terminal() -> TextIO | None:
    """The terminal that stderr ends up on, for writing, or None.

    Under mpirun a rank's stderr is a pipe to its parent, the launcher. On the launcher's node it is written to directly if
    that has a terminal: the launcher itself hands on whole lines only, which would swallow a live bar.
    """
    if sys.stderr.isatty():
        return sys.stderr
    try:
        target = Path(f"/proc/{os.getppid()}/fd/2").readlink()
        if str(target).startswith(("/dev/pts/", "/dev/tty")):
            return open(target, "w", opener=lambda path, flags: os.open(path, flags | os.O_NOCTTY))
    except OSError:
        pass
    return None


class Progress:
    """Counts up to `total` units: a live bar where stderr ends up on a terminal, else a line now and then. quiet: nothing."""

    def __init__(
        self, total: int, unit: str, *, label: str = "", initial: int = 0, quiet: bool = False
    ) -> None:
        self.total, self.unit, self.label, self.done, self.initial = (
            total,
            unit,
            label,
            initial,
            initial,
        )
        self._quiet = quiet
        self._started = self._last = time.monotonic()
        self._note = ""
        self._bar: Any = None
        self._terminal = None if quiet else find_terminal()
        if self._terminal is not None:
            from tqdm import tqdm

            columns = os.get_terminal_size(self._terminal.fileno()).columns
            self._bar = tqdm(
                total=total,
                initial=initial,
                unit=f" {unit}",
                desc=label or None,
                ncols=columns,
                file=self._terminal,
            )

    def advance(self, count: int, note: str = "") -> None:
        """`count` more units are done; `note` is shown behind the numbers."""
        self.done += count
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif not self._quiet and time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self.say(self._line())

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        rate = (self.done - self.initial) / seconds if seconds > 0 else 0.0
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        percent = 100 * self.done / max(1, self.total)
        return f"{self.label + ': ' if self.label else ''}{percent:.0f} % ({rate:.0f} {self.unit}/s{left}) {self._note}".rstrip()

    def say(self, text: str) -> None:
        """A line of text that does not break the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._terminal)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()
