"""Metrics of a run: one JSON object a line in metrics.jsonl, and TensorBoard events. Rank 0 only; files are appended to."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


class MetricsLog:
    """Writes `folder`/metrics.jsonl and `folder`/tensorboard. Each record has a "kind": step, evaluation or resume."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "metrics.jsonl", "a", buffering=1)
        self._broken = False
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def add(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One record at `step`; numbers also go to TensorBoard under kind/name.

        A file that can no longer be written (a full disk) is said once and given up: it must not end the training.
        """
        if self._broken:
            return
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            for name, value in values.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            self._broken = True
            print(f"mpidl: metrics are no longer written: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flush everything."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records that count: those of steps which a resumed job has run again are replaced by the later ones."""
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
