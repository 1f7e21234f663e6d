"""Errors say what, where and what to do, and survive the way to other ranks."""

from __future__ import annotations

import pickle

import pytest

from mpidl.errors import CollectiveError, MpidlError, notice, wrap


def test_a_copy_keeps_what_is_not_replaced() -> None:
    error = CollectiveError("broken", where="file.h5", remedy="mend it", agreed=True)
    copy = error.replace(where="rank 1, file.h5")
    assert type(copy) is CollectiveError and copy.agreed
    assert str(copy) == "rank 1, file.h5: broken\n  what to do: mend it"
    assert not error.replace(agreed=False).agreed


def test_a_pickled_error_is_whole() -> None:
    error = pickle.loads(pickle.dumps(MpidlError("a", where="b", remedy="c", agreed=True)))
    assert (error.what, error.where, error.remedy, error.agreed) == ("a", "b", "c", True)


def test_foreign_errors_name_the_activity() -> None:
    assert wrap(ValueError("odd"), "testing").what == "ValueError: odd (while testing)"
    assert "global_batch" in wrap(MemoryError(), "testing").remedy


def test_notices_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    notice("slow")
    notice("broken", "error on rank 3")
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == "mpidl: note: slow\nmpidl: error on rank 3: broken\n"
