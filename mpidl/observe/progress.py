"""Progress on stderr, on rank 0: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from mpidl.errors import PlatformError
from mpidl.extras import load_extra

LINE_SECONDS = 10.0


def find_terminal() -> TextIO | None:
    """The terminal that shows stderr, open for writing, or None.

    Under mpirun a rank's stderr is a pipe to its parent, the launcher, which forwards whole lines
    only and would swallow a live bar. On the launcher's node its terminal is opened directly.
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
    """Counts units: a live bar on a terminal where tqdm is installed, else a line now and then.

    Args:
        total: Units when all is done.
        unit: Their name in the plural.
        label: In front of the numbers.
        initial: Units that were done before.
        quiet: Whether to show nothing.
    """

    def __init__(
        self, total: int, unit: str, *, label: str = "", initial: int = 0, quiet: bool = False
    ) -> None:
        self.total = total
        self.unit = unit
        self.label = label
        self.initial = initial
        self.done = initial
        self._quiet = quiet
        self._started = time.monotonic()
        self._last = self._started
        self._note = ""
        self._terminal = None if quiet else find_terminal()
        self._bar = self._make_bar(self._terminal) if self._terminal is not None else None

    def _make_bar(self, terminal: TextIO) -> Any:
        try:
            tqdm = load_extra("tqdm", "a live bar").tqdm
        except PlatformError:
            return None  # lines show the same numbers
        return tqdm(
            total=self.total,
            initial=self.initial,
            unit=f" {self.unit}",
            desc=self.label or None,
            ncols=os.get_terminal_size(terminal.fileno()).columns,
            file=terminal,
        )

    def advance(self, count: int, note: str = "") -> None:
        """Count units that are done.

        Args:
            count: How many more.
            note: Shown behind the numbers.
        """
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
        label = f"{self.label}: " if self.label else ""
        return f"{label}{percent:.0f} % ({rate:.0f} {self.unit}/s{left}) {self._note}".rstrip()

    def say(self, text: str) -> None:
        """Print a line of text above the bar."""
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
