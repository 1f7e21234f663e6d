"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault(
    "MPIDL_BACKEND", "numpy"
)  # the stand-in for CuPy must not be chosen by itself
import mpidl  # noqa: F401  (loads MPI before anything can import h5py)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def _cupy_ops() -> Any:
    if os.environ.get("MPIDL_TEST_GPU") != "1":
        from tests.standin import fake_cupy

        if "cupy" not in sys.modules:
            fake_cupy.install()
    from mpidl.backend.cupy_ops import CupyOps

    return CupyOps()


def _numpy_ops(use_c: bool) -> Any:
    from mpidl.backend.numpy_ops import NumpyOps

    ops = NumpyOps(use_c=use_c)
    if use_c and ops.level == "none":
        pytest.skip("the C kernels were not built")
    return ops


@pytest.fixture(params=["c", "numpy", "cupy"])
def ops(request: pytest.FixtureRequest) -> Any:
    """Every backend: NumPy with C kernels, pure NumPy, and CuPy.

    CuPy runs on a GPU if MPIDL_TEST_GPU=1, else on the stand-in.
    """
    return _cupy_ops() if request.param == "cupy" else _numpy_ops(request.param == "c")


@pytest.fixture
def gpu_ops() -> Any:
    """The CuPy backend alone."""
    return _cupy_ops()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1234)


@pytest.fixture
def context() -> Any:
    from mpidl.comm.context import init

    return init()
