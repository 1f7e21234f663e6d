"""Which backend is taken, and what is said where the one that was wanted cannot run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend import create_ops, select
from mpidl.errors import BackendError
from mpidl.nn import Dense, Model


@pytest.fixture(autouse=True)
def no_choice_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPIDL_BACKEND", raising=False)


def test_cupy_without_a_driver_falls_back_and_says_so_once_a_node(
    monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(
        select, "gpu_problem", lambda: "CuPy finds no usable driver (CUDA_ERROR_NO_DEVICE)"
    )
    assert create_ops("auto", 0).name == "numpy"
    assert "no usable driver" in capsys.readouterr().err
    create_ops("auto", 1)
    assert capsys.readouterr().err == ""
    with pytest.raises(BackendError, match="asked for, but CuPy finds no usable driver"):
        create_ops("cupy")


def test_no_cupy_is_nothing_to_speak_of(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(
        select, "gpu_problem", lambda: "CuPy is not installed (No module named 'cupy')"
    )
    assert create_ops("auto").name == "numpy" and capsys.readouterr().err == ""
    with pytest.raises(BackendError, match="not installed"):
        create_ops("cupy")


def test_an_unsupported_dtype_is_refused() -> None:
    with pytest.raises(BackendError, match="float16"):
        Model([Dense(3)], (4,), create_ops("numpy"), dtype=np.float16)


def test_winograd_can_be_turned_off(monkeypatch: Any, rng: np.random.Generator) -> None:
    """And rounding errors are smaller then."""
    from mpidl.backend.contract.conv import ConvGeometry
    from mpidl.backend.numpy_ops import NumpyOps

    g = ConvGeometry((1, 16, 16), 64, 32, (1, 3, 3), pad=(0, 1, 1))
    x, w = rng.standard_normal((1, 16, 16, 64)), rng.standard_normal((3, 3, 64, 32))
    exact, errors = np.empty((1, 16, 16, 32)), []
    NumpyOps(use_c=False).conv_forward(x, w, np.zeros(32), exact, g, relu=False)
    for value in ("on", "off"):
        monkeypatch.setenv("MPIDL_WINOGRAD", value)
        ops, y = NumpyOps(), np.empty(exact.shape, np.float32)
        if ops.level == "none":
            pytest.skip("the C kernels were not built")
        ops.conv_forward(
            x.astype(np.float32), w.astype(np.float32), np.zeros(32, np.float32), y, g, relu=False
        )
        errors.append(np.abs(y - exact).max())
    monkeypatch.delenv("MPIDL_WINOGRAD")
    NumpyOps()
    assert errors[1] < errors[0] < 2e-4 * np.abs(exact).max()
