"""The type `Array` promises nothing that the arrays of a backend do not have."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from mpidl.backend import Array

MACHINERY = {"__init__", "__subclasshook__"}  # of `typing.Protocol`
MEMBERS = sorted(
    name
    for name, value in vars(Array).items()
    if (inspect.isfunction(value) or isinstance(value, property)) and name not in MACHINERY
)


def test_the_type_says_something() -> None:
    """With `Any` in its place no use of an array would be checked."""
    assert {"shape", "dtype", "reshape", "__getitem__", "__setitem__", "__iadd__"} <= set(MEMBERS)


@pytest.mark.parametrize("name", MEMBERS)
def test_arrays_of_every_backend_have_it(ops: Any, name: str) -> None:
    assert hasattr(ops.to_device(np.ones((2, 3), np.float32)), name)
