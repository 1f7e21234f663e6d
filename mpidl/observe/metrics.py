"""Metrics of a run: one JSON object a line in metrics.jsonl, and TensorBoard events.

Rank 0 only; files are appended to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpidl.errors import PlatformError, notice
from mpidl.extras import load_extra


class MetricsLog:
    """Writes `folder`/metrics.jsonl, and `folder`/tensorboard where tensorboardX is installed.

    Args:
        folder: Of the run; made if it is missing.
        note: Called once where TensorBoard events cannot be written.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] = notice) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "metrics.jsonl", "a", buffering=1)
        self._broken = False
        self._board: Any = None
        try:
            tensorboard = load_extra("tensorboardX", "writing TensorBoard events")
            self._board = tensorboard.SummaryWriter(str(folder / "tensorboard"))
        except PlatformError as error:
            note(f"{error.what}; metrics.jsonl has all metrics ({error.remedy})")

    def add(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one record; numbers also go to TensorBoard under kind/name.

        A full disk is reported once, and nothing more is written: metrics must not end the
        training.

        Args:
            kind: "step", "evaluation" or "resume".
            step: Finished steps.
            values: The metrics by name.
        """
        if self._broken:
            return
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            for name, value in values.items():
                if self._board and isinstance(value, (int, float)) and name != "epoch":
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            self._broken = True
            notice(f"metrics are no longer written: {error}")

    def close(self) -> None:
        """Flush and close all files."""
        with suppress(OSError):
            self._file.close()
        if self._board:
            with suppress(OSError):
                self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run in order.

    Steps that a resumed job has run again count once, with their later records.

    Args:
        path: A metrics.jsonl.
    """
    records: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed job can be cut off
        if record["kind"] == "resume":
            records = [earlier for earlier in records if earlier["step"] <= record["step"]]
        records.append(record)
    return records
