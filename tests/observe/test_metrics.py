"""metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mpidl.observe.metrics import MetricsLog, read_metrics


def test_records_are_appended_and_read(tmp_path: Path) -> None:
    for start in (1, 3):
        log = MetricsLog(tmp_path)
        for step in (start, start + 1):
            log.add("step", step, {"loss": 1 / step, "epoch": 0})
        log.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert records[1] == {"kind": "step", "step": 2, "loss": 0.5, "epoch": 0}
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_steps_that_ran_again_count_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines: list[dict[str, Any]] = [{"kind": "step", "step": step, "run": 1} for step in range(1, 6)]
    lines.append({"kind": "resume", "step": 3})
    lines += [{"kind": "step", "step": step, "run": 2} for step in (4, 5)]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "st')  # a job was killed
    records = [record for record in read_metrics(path) if record["kind"] == "step"]
    assert [(record["step"], record["run"]) for record in records] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 2),
        (5, 2),
    ]


def test_a_full_disk_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    log = MetricsLog(tmp_path)
    log._file.close()
    log._file = Full()  # type: ignore[assignment]
    for step in range(3):
        log.add("step", step, {"loss": 1.0})
    log.close()
    assert capsys.readouterr().err.count("No space left") == 1


def test_without_tensorboard_there_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    notes: list[str] = []
    log = MetricsLog(tmp_path, notes.append)
    log.add("step", 1, {"loss": 1.0})
    log.close()
    (note,) = notes
    assert "metrics.jsonl has all metrics" in note and "mpidl[tensorboard]" in note
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
