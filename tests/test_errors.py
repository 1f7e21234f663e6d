"""The family of exceptions: what they say, and what survives the way to other ranks."""

from __future__ import annotations

import errno
import pickle

import pytest

from mpidl.errors import CollectiveError, ConfigError, MpidlError, nearest, notice, unreadable, wrap


def test_an_error_says_what_where_and_what_to_do() -> None:
    error = ConfigError("is wrong", where="run.toml", remedy="correct it")
    assert str(error) == "run.toml: is wrong\n  what to do: correct it"
    assert not error.agreed


def test_pickling_keeps_all_parts() -> None:
    error = CollectiveError("overflow", where="rank 1", remedy="scale", agreed=True)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is CollectiveError
    assert (copy.what, copy.where, copy.remedy, copy.agreed) == (
        "overflow",
        "rank 1",
        "scale",
        True,
    )


def test_wrap_names_the_activity_and_keeps_our_own_errors() -> None:
    own = MpidlError("known")
    assert wrap(own, "reading") is own
    assert wrap(ValueError("odd"), "reading").what == "ValueError: odd (while reading)"
    full = wrap(OSError(errno.ENOSPC, "No space left on device"), "writing")
    assert "free space" in full.remedy


def test_only_what_keeps_a_file_out_of_reach_is_unreadable() -> None:
    assert unreadable(errno.ENOENT, "a.h5") is None
    locked = unreadable(errno.EAGAIN, "a.h5")
    assert locked is not None and "(a lock)" in locked.what


def test_the_nearest_word_comes_first() -> None:
    assert nearest("rinq", ["tree", "ring"]).startswith("did you mean 'ring'?")


def test_a_notice_goes_to_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    notice("slower than it could be")
    assert capsys.readouterr().err == "mpidl: note: slower than it could be\n"
