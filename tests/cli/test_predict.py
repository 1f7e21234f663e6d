"""What `mpidl predict` shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mpidl.cli.predict import _Shown
from mpidl.inference.store import Layout, Notes
from mpidl.observe import progress


def test_progress_counts_what_is_done_before_and_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "find_terminal", lambda: None)
    root: Any = SimpleNamespace(is_root=True)
    shown = _Shown(root)
    layout = Layout(1000, 10, {}, 0, {}, Notes({}))
    told = shown.begin(layout, 400)
    for done in (420, 700, 1000):  # other ranks have done 26 chunks between the two of this one
        told(done)
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        f"predicting: {share} %" for share in (42, 70, 100)
    ]
