"""Records of what ranks do together."""

from __future__ import annotations

import numpy as np
import pytest

from mpidl.collectives.engine.reduction import call_hash
from mpidl.comm import mpi
from mpidl.comm.activity import Activity, Call, activities


@pytest.fixture
def activity() -> Activity:
    return Activity(mpi.initialize().COMM_SELF, "test")


def test_a_call_in_words() -> None:
    assert str(Call("barrier")) == "barrier"
    call = Call("all_reduce", np.zeros(3, np.float32), "sum", "bucket 0")
    assert str(call) == "all_reduce (sum) of 3 x float32, bucket 0"


def test_operations_nest_and_end_also_by_an_error(activity: Activity) -> None:
    with activity.during("outer"):
        outer = activity.call
        with pytest.raises(ZeroDivisionError), activity.recording(Call("inner")):
            assert activity.call == Call("inner")
            raise ZeroDivisionError
        assert activity.call == outer
    assert activity.call is None and activity.count == 2


def test_a_forgotten_activity_is_not_watched(activity: Activity) -> None:
    assert activity in activities()
    activity.forget()
    assert activity not in activities()


def test_the_hash_of_a_call_leaves_its_buffer_out() -> None:
    calls = [Call("reduce", np.zeros(n), "sum", "x") for n in (1, 2)]
    assert call_hash(calls[0]) == call_hash(calls[1])
    assert call_hash(calls[0]) != call_hash(Call("reduce", None, "max", "x"))
    assert call_hash(None) == 0
