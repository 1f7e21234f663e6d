"""Progress for people, on rank 0 and on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_SECONDS = 10.0


class Progress:
    """Counts up to `total` units. live: draw a bar (default: whether stderr is a terminal). quiet: show nothing."""

    def __init__(self, total: int, unit: str, *, label: str = "", initial: int = 0, quiet: bool = False) -> None:
        self.total, self.unit, self.label, self.done, self.initial = total, unit, label, initial, initial
        self._quiet = quiet
        self._started = self._last = time.monotonic()
        self._note = ""
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=initial, unit=f" {unit}", desc=label or None, dynamic_ncols=True, file=sys.stderr
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
        return (
            f"{self.label + ': ' if self.label else ''}{percent:.0f} % ({rate:.0f} {self.unit}/s{left}) {self._note}".rstrip()
        )

    def say(self, text: str) -> None:
        """A line of text that does not break the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()
