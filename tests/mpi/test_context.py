"""Who we are, and stopping together."""

from __future__ import annotations

from typing import Any

import pytest

from mpidl.errors import DataError, MpidlError

pytestmark = pytest.mark.mpi


def test_ranks_and_nodes(context: Any) -> None:
    assert context.allgather_object(context.rank, int) == list(range(context.size))
    assert context.nodes == 1 and context.node == 0
    assert context.allgather_object(context.local_rank, int) == list(range(context.size))
    assert context.local_size == context.size and context.threads >= 1


def test_an_error_on_the_last_rank_is_raised_on_all(context: Any) -> None:
    with pytest.raises(DataError, match="broken") as caught, context.fail_together("testing"):
        if context.rank == context.size - 1:
            raise DataError("broken", where="file.h5", remedy="mend it")
    assert caught.value.agreed
    assert caught.value.remedy == "mend it"
    assert f"rank {context.size - 1}" in str(caught.value) and "file.h5" in str(caught.value)


def test_foreign_exceptions_are_wrapped(context: Any) -> None:
    with (
        pytest.raises(MpidlError, match=r"ValueError: odd \(while testing\)"),
        context.fail_together("testing"),
    ):
        if context.rank == 0:
            raise ValueError("odd")


def test_no_error_means_no_error(context: Any) -> None:
    with context.fail_together("testing"):
        pass
    assert context.on_root(lambda: 42, "testing", int) == 42


def test_on_root_shares_the_error(context: Any) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(MpidlError, match="free space"):
        context.on_root(fail, "testing")
